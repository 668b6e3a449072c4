//! Pages on disk: files of slots of one size, each a header and the bytes of one page.
//!
//! A slot begins at a multiple of 4,096 bytes, so that writing one cannot tear another. It is free again when its
//! [`Slot`] is dropped, and a file of which no slot is used is removed.

mod direct;
mod files;
mod header;
mod mapped;
mod own_file;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

pub use files::{File, Files, OsFiles, Reads};
pub(crate) use files::{read_all, write_all};
pub(crate) use header::{HEADER_BYTES, Header};
pub(crate) use own_file::{FileKind, FolderLock, OwnFile};

use crate::sync::{Mutex, lock};
use crate::{Damage, DiskOptions, Error, Result};

/// The file by which a folder is one store's.
pub(crate) const LOCK: &str = "lock";

/// What slots are aligned to: the largest unit in which disks and file systems write.
pub(crate) const SLOT_ALIGN: usize = 4096;

/// The files of one store.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) folder: PathBuf,
    slot_bytes: usize,
    slots_per_file: u32,
    /// What is written between the end of a page and the next slot.
    zeros: Vec<u8>,
    growing: Mutex<Growing>,
    folder_lock: FolderLock,
}

#[derive(Debug)]
struct Growing {
    /// The highest number of each kind of file so far.
    last_pages: u32,
    last_attached: u32,
    /// The file whose end takes new slots.
    last: Option<Arc<SlotFile>>,
    /// All files of this store that are still there.
    all: Vec<Weak<SlotFile>>,
}

/// A file of slots.
#[derive(Debug)]
pub(crate) struct SlotFile {
    pub(crate) number: u32,
    own: OwnFile,
    slots: Mutex<Slots>,
    /// Written to since it was last made durable.
    is_unsynced: AtomicBool,
    syncing: Mutex<Syncing>,
}

#[derive(Debug, Default)]
struct Slots {
    /// Slots that have been used.
    len: u32,
    free: BTreeSet<u32>,
    num_used: usize,
    /// An earlier process wrote the file: this one writes none of its slots.
    is_old: bool,
}

/// Held while a file is made durable.
#[derive(Debug, Default)]
struct Syncing {
    /// It failed once: nobody knows what of the file is durable.
    is_doubtful: bool,
}

/// A slot in use, with the checksum of what was written there.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) file: Arc<SlotFile>,
    pub(crate) idx: u32,
    pub(crate) checksum: u64,
}

/// Where a page lies. It stays there as long as the page has its [`Slot`].
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: Arc<SlotFile>,
    pub(crate) idx: u32,
    pub(crate) checksum: u64,
}

impl Disk {
    /// The disk of pages of `page_bytes`, and the names of what is in its folder.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder is not there, cannot be written, or is another store's.
    pub(crate) fn open(options: &DiskOptions, page_bytes: usize) -> Result<(Self, Vec<String>)> {
        let DiskOptions { folder, files, .. } = options;
        let lock_path = folder.join(LOCK);
        let folder_lock =
            files.lock(&lock_path).map_err(|source| io_error("lock", &lock_path, source))?;
        let names = files.names(folder).map_err(|source| io_error("list", folder, source))?;
        let last =
            |kind: FileKind| names.iter().filter_map(|name| kind.number(name)).max().unwrap_or(0);
        let slot_bytes = (HEADER_BYTES + page_bytes).next_multiple_of(SLOT_ALIGN);
        let slots_per_file = options.file_bytes / slot_bytes as u64;
        let disk = Self {
            files: Arc::clone(files),
            folder: folder.clone(),
            slot_bytes,
            slots_per_file: u32::try_from(slots_per_file).unwrap_or(u32::MAX).max(1),
            zeros: vec![0; slot_bytes],
            growing: Mutex::new(Growing {
                last_pages: last(FileKind::Pages),
                last_attached: last(FileKind::Attached),
                last: None,
                all: Vec::new(),
            }),
            folder_lock: folder_lock.into(),
        };
        Ok((disk, names))
    }

    /// A file that an earlier process wrote. Its slots are used by whoever names them, and no others.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open_file(&self, number: u32) -> Result<Arc<SlotFile>> {
        let file = Arc::new(SlotFile::new(number, self.open_own(FileKind::Pages, number)?));
        lock(&file.slots).is_old = true;
        lock(&self.growing).all.push(Arc::downgrade(&file));
        Ok(file)
    }

    /// A new file for what is saved with a sequence beside its rows, and its number.
    ///
    /// # Errors
    /// [`Error::LastFile`], [`Error::Io`].
    pub(crate) fn create_attached(&self) -> Result<(u32, OwnFile)> {
        let mut growing = lock(&self.growing);
        let own = self.create_after(FileKind::Attached, &mut growing.last_attached)?;
        Ok((growing.last_attached, own))
    }

    /// A new file with the number after the last, which is the last then.
    fn create_after(&self, kind: FileKind, last: &mut u32) -> Result<OwnFile> {
        let no_number = || Error::LastFile { path: self.folder.join(kind.name(*last)) };
        let number = last.checked_add(1).ok_or_else(no_number)?;
        let path = self.folder.join(kind.name(number));
        let file = self.files.create(&path).map_err(|source| io_error("create", &path, source))?;
        *last = number;
        Ok(OwnFile::new(path, &self.files, &self.folder_lock, file))
    }

    /// A file that an earlier process wrote.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open_own(&self, kind: FileKind, number: u32) -> Result<OwnFile> {
        let path = self.folder.join(kind.name(number));
        let file = self.files.open(&path).map_err(|source| io_error("open", &path, source))?;
        Ok(OwnFile::new(path, &self.files, &self.folder_lock, file))
    }

    /// Slots in use.
    pub(crate) fn num_slots(&self) -> usize {
        let files: Vec<_> = lock(&self.growing).all.iter().filter_map(Weak::upgrade).collect();
        files.iter().map(|file| lock(&file.slots).num_used).sum()
    }

    /// Puts a file in the place of another.
    ///
    /// # Errors
    /// [`Error::Io`], as for those below.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.files.rename(from, to).map_err(|source| io_error("replace", to, source))
    }

    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        self.files.remove(path).map_err(|source| io_error("remove", path, source))
    }

    pub(crate) fn sync_folder(&self) -> Result<()> {
        let synced = self.files.sync_folder(&self.folder);
        synced.map_err(|source| io_error("make durable", &self.folder, source))
    }

    /// Writes pages into slots, neighbours in one call, and gives the slots of all, or of those before one that failed.
    pub(crate) fn write(&self, pages: &[(Header, &[u8])]) -> (Vec<Slot>, Result<()>) {
        let mut slots = Vec::with_capacity(pages.len());
        while slots.len() < pages.len() {
            let rest = &pages[slots.len()..];
            let written = self
                .allocate(rest.len())
                .and_then(|mut run| self.write_run(&mut run, rest).map(|()| run));
            match written {
                Ok(run) => slots.extend(run),
                Err(error) => return (slots, Err(error)),
            }
        }
        (slots, Ok(()))
    }

    /// Writes as many pages as there are slots in the run.
    fn write_run(&self, run: &mut [Slot], pages: &[(Header, &[u8])]) -> Result<()> {
        let mut headers = Vec::with_capacity(run.len());
        for (slot, (header, payload)) in run.iter_mut().zip(pages) {
            let (bytes, checksum) = header.encode(payload);
            slot.checksum = checksum;
            headers.push(bytes);
        }
        let mut parts = Vec::with_capacity(3 * run.len());
        for (header, (_, payload)) in headers.iter().zip(pages) {
            let padding = &self.zeros[HEADER_BYTES + payload.len()..];
            parts.extend([&header[..], payload, padding].map(IoSlice::new));
        }
        // The end of the last page is the end of the write.
        parts.pop();
        let file = &run[0].file;
        let page = pages[0].0.name;
        write_all(file.own.file(), self.offset(run[0].idx), &mut parts)
            .map_err(|source| Error::WritePage { page, source: Arc::new(source) })?;
        // Not before: a sync that runs meanwhile may have missed it.
        file.is_unsynced.store(true, Ordering::Release);
        Ok(())
    }

    /// Reads pages from neighbouring slots into their buffers in one call, and checks each.
    pub(crate) fn read(
        &self,
        places: &[Place],
        pages: &mut [(Header, &mut [u8])],
    ) -> Vec<Result<()>> {
        match self.read_run(places, pages) {
            Ok(headers) => {
                let found = headers.iter().zip(places).zip(pages);
                found
                    .map(|((found, place), (header, payload))| {
                        let damaged = |damage| Error::DamagedPage { page: header.name, damage };
                        header.check(found, payload, place.checksum).map_err(damaged)
                    })
                    .collect()
            }
            Err(source) => match pages {
                [(header, _)] => {
                    let page = header.name;
                    let error = if source.kind() == ErrorKind::UnexpectedEof {
                        Error::DamagedPage { page, damage: Damage::Length }
                    } else {
                        Error::ReadPage { page, source: Arc::new(source) }
                    };
                    vec![Err(error)]
                }
                // One of them is at fault; the others can be had.
                _ => {
                    let each = places.chunks(1).zip(pages.chunks_mut(1));
                    each.flat_map(|(place, page)| self.read(place, page)).collect()
                }
            },
        }
    }

    fn read_run(
        &self,
        places: &[Place],
        pages: &mut [(Header, &mut [u8])],
    ) -> io::Result<Vec<[u8; HEADER_BYTES]>> {
        let mut headers = vec![[0; HEADER_BYTES]; pages.len()];
        let mut paddings: Vec<Vec<u8>> = pages
            .iter()
            .map(|(_, payload)| vec![0; self.slot_bytes - HEADER_BYTES - payload.len()])
            .collect();
        let mut parts = Vec::with_capacity(3 * pages.len());
        for (((_, payload), header), padding) in
            pages.iter_mut().zip(&mut headers).zip(&mut paddings)
        {
            parts.extend([&mut header[..], payload, padding].map(IoSliceMut::new));
        }
        // The file may end where its last page does.
        parts.pop();
        read_all(places[0].file.own.file(), self.offset(places[0].idx), &mut parts)?;
        Ok(headers)
    }

    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot_bytes as u64
    }

    /// A run of neighbouring slots, at least one and at most `most`.
    fn allocate(&self, most: usize) -> Result<Vec<Slot>> {
        let mut growing = lock(&self.growing);
        growing.all.retain(|file| file.strong_count() > 0);
        let files: Vec<_> = growing.all.iter().filter_map(Weak::upgrade).collect();
        if let Some(run) = files.iter().find_map(|file| file.take_free(most)) {
            return Ok(run);
        }
        if let Some(run) = growing.last.as_ref().and_then(|file| self.take_end(file, most)) {
            return Ok(run);
        }
        let own = self.create_after(FileKind::Pages, &mut growing.last_pages)?;
        let file = Arc::new(SlotFile::new(growing.last_pages, own));
        growing.all.push(Arc::downgrade(&file));
        let run = self.take_end(&file, most).expect("a file takes at least one slot");
        growing.last = Some(file);
        Ok(run)
    }

    fn take_end(&self, file: &Arc<SlotFile>, most: usize) -> Option<Vec<Slot>> {
        let mut slots = lock(&file.slots);
        let left = self.slots_per_file - slots.len;
        let num_slots = u32::try_from(most).unwrap_or(u32::MAX).min(left);
        let first = slots.len;
        slots.len += num_slots;
        (num_slots > 0).then(|| file.run(&mut slots, first, num_slots))
    }
}

impl SlotFile {
    fn new(number: u32, own: OwnFile) -> Self {
        Self {
            number,
            own,
            slots: Mutex::default(),
            is_unsynced: AtomicBool::new(false),
            syncing: Mutex::default(),
        }
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// [`Error::Io`], and from then on always: what the system has forgotten it will not write later.
    pub(crate) fn sync(&self) -> Result<()> {
        let failed = |source| io_error("make durable", self.own.path(), source);
        // Whoever comes second is not done before the first is.
        let mut syncing = lock(&self.syncing);
        if syncing.is_doubtful {
            return Err(failed(io::Error::other("an earlier attempt failed")));
        }
        if self.is_unsynced.swap(false, Ordering::AcqRel) {
            // Doubtful until the system says otherwise.
            syncing.is_doubtful = true;
            self.own.file().sync().map_err(failed)?;
            syncing.is_doubtful = false;
        }
        Ok(())
    }

    /// Lets the file stay when nobody here uses it any more.
    pub(crate) fn keep(&self) {
        self.own.keep();
    }

    /// A slot that an earlier process wrote.
    pub(crate) fn claim(self: &Arc<Self>, idx: u32, checksum: u64) -> Slot {
        lock(&self.slots).num_used += 1;
        Slot { file: Arc::clone(self), idx, checksum }
    }

    /// Neighbours among the free slots.
    fn take_free(self: &Arc<Self>, most: usize) -> Option<Vec<Slot>> {
        let mut slots = lock(&self.slots);
        let first = if slots.is_old { None } else { slots.free.pop_first() }?;
        let mut num_slots = 1;
        while (num_slots as usize) < most && slots.free.remove(&(first + num_slots)) {
            num_slots += 1;
        }
        Some(self.run(&mut slots, first, num_slots))
    }

    fn run(self: &Arc<Self>, slots: &mut Slots, first: u32, num_slots: u32) -> Vec<Slot> {
        slots.num_used += num_slots as usize;
        let slot = |idx| Slot { file: Arc::clone(self), idx, checksum: 0 };
        (first..first + num_slots).map(slot).collect()
    }
}

impl Slot {
    pub(crate) fn place(&self) -> Place {
        Place { file: Arc::clone(&self.file), idx: self.idx, checksum: self.checksum }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = lock(&self.file.slots);
        slots.num_used -= 1;
        slots.free.insert(self.idx);
    }
}

impl Place {
    /// Whether `next` lies right behind this one.
    pub(crate) fn is_before(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.file, &next.file) && self.idx.checked_add(1) == Some(next.idx)
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { action, path: path.to_path_buf(), source: Arc::new(source) }
}

#[cfg(all(test, not(loom)))]
mod tests;
