//! Sequences under names: what survives the process.
//!
//! A sequence is saved in an order in which every step may be the last: its pages and what is attached are written and
//! made durable, then the names of their files, then a table of them under a name of its own, which then takes the place
//! of the earlier table in one step. A slot or file that a table names is not used again before another table has taken
//! its place for good.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use twox_hash::xxhash3_64::Hasher;

use crate::attached::{Attached, Attachment};
use crate::disk::{self, Disk, FileKind, Files, SlotFile, io_error};
use crate::page::Page;
use crate::sequence::{Head, Sequence, Tail};
use crate::store::DiskOptions;
use crate::sync::lock;
use crate::table::{HeadEntry, PageEntry, Table};
use crate::transfer::Shared;
use crate::{Damage, Error, PageName, Result, Store, StoreShape};

/// What the name of a table's file ends with.
const ENDING: &str = ".saved";

/// What the name of a file ends with that is to become a table's.
const NEW_ENDING: &str = ".saved-new";

/// The most bytes of a table.
const MAX_TABLE_BYTES: u64 = 1 << 30;

/// The saved sequences of a store's folder.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    entries: BTreeMap<String, Entry>,
    /// What names stand for instead if a step failed of which the system does not say whether it was taken.
    doubtful: BTreeMap<String, Vec<Pair>>,
}

/// Rows, and what is saved beside them.
type Pair = (Vec<Head>, Option<Arc<Attached>>);

/// What a name stands for.
#[derive(Debug)]
struct Entry {
    /// Its rows, or why this store cannot have them.
    heads: Result<Vec<Head>>,
    /// What is saved beside the rows, if anything is; also where the rows are another store's.
    attached: Result<Option<Arc<Attached>>>,
}

impl Entry {
    fn attachment(&self, name: &str) -> Result<Attachment> {
        let none = || Error::NoAttachment { name: name.to_owned() };
        Attachment::new(name, self.attached.clone()?.ok_or_else(none)?)
    }
}

impl Sequence {
    /// Saves the sequence under a name, in the place of what was saved under it before. When this returns, the
    /// rows that it has now survive whatever happens to the process and the machine; until then, and where it
    /// fails, what was saved before does.
    ///
    /// # Errors
    /// [`Error::NoDisk`], [`Error::BadName`], [`Error::WritePage`], [`Error::LastFile`], [`Error::Io`].
    pub fn save(&mut self, name: &str) -> Result<()> {
        self.save_and(name, |_| Ok(None))
    }

    /// The same with what `write` writes beside the rows, a megabyte in memory at a time: [`Store::attachment`] reads it.
    /// The two are saved together or not at all.
    ///
    /// # Errors
    /// As [`save`](Self::save), [`Error::Io`] also with what `write` fails with.
    pub fn save_with(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        self.save_and(name, |disk| Ok(Some(Arc::new(Attached::write(disk, write)?))))
    }

    fn save_and(
        &mut self,
        name: &str,
        attach: impl FnOnce(&Disk) -> Result<Option<Arc<Attached>>>,
    ) -> Result<()> {
        let store = self.store().clone();
        let shared = store.shared();
        let disk = shared.disk.as_ref().ok_or(Error::NoDisk)?;
        check_name(name)?;
        let heads = self.rest().to_vec();
        let pages: Vec<_> = heads.iter().flat_map(pages).cloned().collect();
        shared.write_all(&pages)?;
        for file in files_of(&heads).values() {
            file.sync()?;
        }
        let attached = attach(disk)?;
        let mut saved = lock(store.saved());
        let table = table(shared, &heads, attached.as_deref());
        let new = saved.write_table(disk, name, &table.encode())?;
        let doubtful = saved.doubtful.entry(name.to_owned()).or_default();
        doubtful.push((heads.clone(), attached.clone()));
        disk.rename(&new, &disk.folder.join(format!("{name}{ENDING}")))?;
        disk.sync_folder()?;
        let entry = Entry { heads: Ok(heads), attached: Ok(attached) };
        saved.entries.insert(name.to_owned(), entry);
        saved.doubtful.remove(name);
        Ok(())
    }
}

impl Store {
    /// Names under which sequences are saved, those that this store cannot load included, in their order.
    #[must_use]
    pub fn saved_names(&self) -> Vec<String> {
        lock(self.saved()).entries.keys().cloned().collect()
    }

    /// The sequence that is saved under a name. Its pages are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::NoSuchSave`], [`Error::ForeignSave`], [`Error::DamagedSave`], and [`Error::Io`] for what could not be
    /// read when the store was opened.
    pub fn load(&self, name: &str) -> Result<Sequence> {
        self.sequence_of(lock(self.saved()).entry(name)?)
    }

    /// What is saved with the sequence of a name beside its rows, of whatever model, format and shape these are: it can
    /// be read to say what a sequence is that this store cannot have.
    ///
    /// # Errors
    /// As [`load`](Self::load) but for [`Error::ForeignSave`]; [`Error::NoAttachment`] and [`Error::DamagedAttachment`].
    pub fn attachment(&self, name: &str) -> Result<Attachment> {
        lock(self.saved()).entry(name)?.attachment(name)
    }

    /// What [`attachment`](Self::attachment) gives and what [`load`](Self::load) gives, of one save: whatever is saved
    /// under the name between two calls, the pair is of the same one.
    ///
    /// # Errors
    /// As [`attachment`](Self::attachment).
    pub fn load_with(&self, name: &str) -> Result<(Attachment, Result<Sequence>)> {
        let saved = lock(self.saved());
        let entry = saved.entry(name)?;
        Ok((entry.attachment(name)?, self.sequence_of(entry)))
    }

    fn sequence_of(&self, entry: &Entry) -> Result<Sequence> {
        Ok(Sequence::new(self.clone(), entry.heads.clone()?))
    }

    /// Removes what is saved under a name, or may be after a save that failed. Sequences that were loaded keep their rows.
    ///
    /// # Errors
    /// [`Error::NoDisk`], [`Error::NoSuchSave`], [`Error::Io`].
    pub fn forget(&self, name: &str) -> Result<()> {
        let disk = self.shared().disk.as_ref().ok_or(Error::NoDisk)?;
        let mut saved = lock(self.saved());
        if !saved.doubtful.contains_key(name) {
            saved.entry(name)?;
        }
        match disk.remove(&disk.folder.join(format!("{name}{ENDING}"))) {
            // An earlier attempt may have come so far.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            removed => removed?,
        }
        disk.sync_folder()?;
        saved.entries.remove(name);
        saved.doubtful.remove(name);
        Ok(())
    }
}

impl Store {
    /// The file by which a folder is one store's.
    pub const LOCK: &'static str = disk::LOCK;

    /// Whether files of this name in a folder are those of a store.
    #[must_use]
    pub fn makes_file(name: &str) -> bool {
        let is_numbered = FileKind::ALL.iter().any(|kind| kind.number(name).is_some());
        let is_table = [ENDING, NEW_ENDING].iter().any(|ending| name.ends_with(ending));
        is_numbered || is_table || name == disk::LOCK
    }

    /// What is saved under, where a file of this name is in the folder of a store; none of files that say nothing of it.
    #[must_use]
    pub fn saved_name(file_name: &str) -> Option<&str> {
        file_name.strip_suffix(ENDING)
    }
}

impl Saved {
    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| Error::NoSuchSave { name: name.to_owned() })
    }

    /// Reads what a folder has, gives the store its disk there, and removes what no table names.
    pub(crate) fn open(shared: &mut Shared, options: &DiskOptions) -> Result<Self> {
        let DiskOptions { folder, files, .. } = options;
        let (disk, names) = Disk::open(options, shared.shape.page_bytes())?;
        shared.description = describe(&shared.shape, &options.model);
        shared.fingerprint = Hasher::oneshot(shared.description.as_bytes());
        let mut tables = BTreeMap::new();
        for name in names.iter().filter_map(|name| Store::saved_name(name)) {
            tables.insert(name, read_table(&**files, folder, name));
        }
        if tables.values().all(Result::is_ok) {
            remove_unnamed(&disk, &names, tables.values().flatten())?;
        }
        for name in names.iter().filter(|name| name.ends_with(NEW_ENDING)) {
            disk.remove(&folder.join(name))?;
        }
        let mut opened = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for (name, table) in tables {
            let entry = match table {
                Ok(table) => {
                    let attached = table.attached.clone();
                    let attached =
                        attached.map(|entry| Ok(Arc::new(Attached::open(&disk, entry)?)));
                    let heads = heads_of(shared, &disk, name, &table, &mut opened);
                    Entry { heads, attached: attached.transpose() }
                }
                Err(error) => Entry { heads: Err(error.clone()), attached: Err(error) },
            };
            entries.insert(name.to_owned(), entry);
        }
        if entries.values().any(|entry| entry.heads.is_err()) {
            // A table that cannot be had may name them.
            opened.values().for_each(|file| file.keep());
        }
        shared.disk = Some(disk);
        Ok(Self { entries, doubtful: BTreeMap::new() })
    }

    /// Writes a table beside the one that it is to replace, durable with all that it names.
    fn write_table(&mut self, disk: &Disk, name: &str, table: &[u8]) -> Result<PathBuf> {
        let path = disk.folder.join(format!("{name}{NEW_ENDING}"));
        let write = || {
            if table.len() as u64 > MAX_TABLE_BYTES {
                return Err(io::Error::from(ErrorKind::FileTooLarge));
            }
            let file = disk.files.create(&path)?;
            disk::write_all(&*file, 0, &mut [IoSlice::new(table)])?;
            file.sync()
        };
        write().map_err(|source| io_error("write", &path, source))?;
        disk.sync_folder()?;
        Ok(path)
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        let doubtful = || self.doubtful.values().flatten();
        let heads = self.entries.values().flat_map(|entry| &entry.heads);
        for heads in heads.chain(doubtful().map(|(heads, _)| heads)) {
            files_of(heads).values().for_each(|file| file.keep());
        }
        let attached = self.entries.values().flat_map(|entry| &entry.attached);
        for attached in attached.chain(doubtful().map(|(_, attached)| attached)).flatten() {
            attached.keep();
        }
    }
}

/// Removes the files among `names` that no table names.
fn remove_unnamed<'a>(
    disk: &Disk,
    names: &[String],
    tables: impl Iterator<Item = &'a Table>,
) -> Result<()> {
    let [mut pages, mut attached] = [BTreeSet::new(), BTreeSet::new()];
    for table in tables {
        pages.extend(table.heads.iter().flat_map(|head| &head.pages).map(|page| page.file));
        attached.extend(table.attached.iter().map(|attached| attached.file));
    }
    for (kind, named) in [(FileKind::Pages, pages), (FileKind::Attached, attached)] {
        let numbers = names.iter().filter_map(|name| kind.number(name));
        for number in numbers.filter(|number| !named.contains(number)) {
            disk.remove(&disk.folder.join(kind.name(number)))?;
        }
    }
    Ok(())
}

/// Everything that must agree between a store and what is loaded into it.
fn describe(shape: &StoreShape, model: &str) -> String {
    let StoreShape { num_layers, num_kv_heads, page_size, layout } = shape;
    let key = layout.key.map_or_else(|| "none".to_owned(), |format| format.to_string());
    let (value, head_dim) = (layout.value, layout.head_dim);
    format!(
        "{num_layers} layers, {num_kv_heads} KV heads of {head_dim}, pages of {page_size} rows, \
         keys {key}, values {value}, model {model}"
    )
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_good = (1..=64).contains(&name.len()) && name.chars().all(is_plain);
    is_good.then_some(()).ok_or_else(|| Error::BadName { name: name.to_owned() })
}

/// The pages of a head that has no open one.
fn pages(head: &Head) -> impl Iterator<Item = &Arc<Page>> {
    let tail = match &head.tail {
        Tail::Part(page) => Some(page),
        Tail::None | Tail::Open(_) => None,
    };
    head.full.iter().chain(tail)
}

fn files_of(heads: &[Head]) -> BTreeMap<u32, Arc<SlotFile>> {
    let places = heads.iter().flat_map(pages).filter_map(|page| page.place());
    places.map(|place| (place.file.number, place.file)).collect()
}

fn table(shared: &Shared, heads: &[Head], attached: Option<&Attached>) -> Table {
    let entry = |page: &Arc<Page>| {
        let place = page.place().expect("its pages were written");
        PageEntry {
            file: place.file.number,
            slot: place.idx,
            sequence: page.name.sequence,
            num_rows: page.num_rows,
            checksum: place.checksum,
        }
    };
    let heads = heads.iter().map(|head| HeadEntry {
        num_rows: head.num_rows as u64,
        pages: pages(head).map(entry).collect(),
    });
    Table {
        description: shared.description.clone(),
        fingerprint: shared.fingerprint,
        heads: heads.collect(),
        attached: attached.map(|attached| attached.entry().clone()),
    }
}

fn read_table(files: &dyn Files, folder: &Path, name: &str) -> Result<Table> {
    let path = folder.join(format!("{name}{ENDING}"));
    let read = || {
        let file = files.open(&path)?;
        let num_bytes = file.num_bytes()?;
        if num_bytes > MAX_TABLE_BYTES {
            return Err(io::Error::from(ErrorKind::FileTooLarge));
        }
        let mut bytes = vec![0; num_bytes as usize];
        disk::read_all(&*file, 0, &mut [IoSliceMut::new(&mut bytes)])?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| io_error("read", &path, source))?;
    Table::decode(&bytes).map_err(|damage| Error::DamagedSave { name: name.to_owned(), damage })
}

/// The heads of a table, if it is of this store.
fn heads_of(
    shared: &Shared,
    disk: &Disk,
    name: &str,
    table: &Table,
    opened: &mut BTreeMap<u32, Arc<SlotFile>>,
) -> Result<Vec<Head>> {
    if table.fingerprint != shared.fingerprint {
        return Err(Error::ForeignSave {
            name: name.to_owned(),
            expected: shared.description.clone(),
            found: table.description.clone(),
        });
    }
    let shape = &shared.shape;
    let damaged = || Error::DamagedSave { name: name.to_owned(), damage: Damage::Identity };
    if table.heads.len() != shape.num_heads() {
        return Err(damaged());
    }
    let mut heads = Vec::with_capacity(table.heads.len());
    for (head_idx, entry) in table.heads.iter().enumerate() {
        let num_rows = u32::try_from(entry.num_rows).map_err(|_| damaged())? as usize;
        let num_full = num_rows / shape.page_size;
        if entry.pages.len() != num_rows.div_ceil(shape.page_size) {
            return Err(damaged());
        }
        let mut head = Head { num_rows, ..Head::default() };
        let mut full = Vec::with_capacity(num_full);
        for (page_idx, page) in entry.pages.iter().enumerate() {
            let needed = (num_rows - page_idx * shape.page_size).min(shape.page_size);
            if !(needed..=shape.page_size).contains(&(page.num_rows as usize)) {
                return Err(damaged());
            }
            let file = match opened.get(&page.file) {
                Some(file) => Arc::clone(file),
                None => Arc::clone(opened.entry(page.file).or_insert(disk.open_file(page.file)?)),
            };
            let page_name = PageName {
                sequence: page.sequence,
                layer: (head_idx / shape.num_kv_heads) as u32,
                kv_head: (head_idx % shape.num_kv_heads) as u32,
                page_idx: page_idx as u32,
            };
            shared.next_sequence.fetch_max(page.sequence.saturating_add(1), Ordering::Relaxed);
            let id = shared.next_page.fetch_add(1, Ordering::Relaxed);
            let slot = file.claim(page.slot, page.checksum);
            let page = Page::on_disk(id, page_name, page.num_rows, slot, full.last());
            let page = Arc::new(page);
            if page_idx < num_full {
                full.push(page);
            } else {
                head.tail = Tail::Part(page);
            }
        }
        head.full = Arc::new(full);
        heads.push(head);
    }
    Ok(heads)
}
