//! A folder with two saved sequences, of which somebody who knows the checksums changes one: what holds nonetheless.
//!
//! Of the formats this knows only where checksums are, so that what else is in them may change. The fuzz targets use it
//! too.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use heterokv_offload::{
    Damage, DiskOptions, Error, Files, HeadRows, Sequence, Store, StoreOptions, StoreShape,
};
use heterokv_quant::{RowFormat, RowLayout};
use twox_hash::xxhash3_64::Hasher;

use super::reading::read;
use super::sim::Sim;

const LAYOUT: RowLayout = RowLayout { key: None, value: RowFormat::F16, head_dim: 8 };

/// Pages of four rows.
const SHAPE: StoreShape =
    StoreShape { num_layers: 2, num_kv_heads: 2, page_size: 4, layout: LAYOUT };

/// Rows of each (layer, KV head): five full pages, and two that are not.
const NUM_ROWS: [usize; 4] = [18, 0, 4, 3];

/// Pages of RAM: one for each head, and a few more.
const NUM_FRAMES: usize = 8;

/// What slots are aligned to.
const SLOT_ALIGN: usize = 4096;

/// The sequence that is changed, and its table.
const CHANGED: &str = "changed";
const TABLE: &str = "changed.saved";

/// The one that is not.
const KEPT: &str = "kept";

/// The folder.
#[derive(Clone)]
pub(crate) struct Folder {
    files: BTreeMap<String, Vec<u8>>,
    /// Those of the sequence that is changed.
    pages: Vec<Written>,
    /// What may be read of it, by (layer, KV head).
    rows: [Vec<Vec<u8>>; 4],
}

/// A page in its slot.
#[derive(Clone)]
struct Written {
    head: usize,
    rows: Range<usize>,
    file: String,
    slot: usize,
    /// What it has for a checksum, in its header and in the table.
    signed: [u8; 8],
    /// Where in the slot that is, and its rows.
    checksum: usize,
    payload: Range<usize>,
}

/// What a store makes of the folder.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The sequence cannot be had.
    Refused(Error),
    /// It can, with so many pages that were read, and so many that were refused.
    Loaded { num_good: usize, num_damaged: usize },
}

impl Folder {
    /// As two stores left it, one after the other, so that they share no file.
    pub(crate) fn new() -> Self {
        let sim = Sim::default();
        for (stream, name) in [(0, CHANGED), (1, KEPT)] {
            let mut sequence = open(&sim).sequence();
            for (head, num_rows) in NUM_ROWS.into_iter().enumerate() {
                let rows: Vec<_> = (0..num_rows).flat_map(|i| row(stream, head, i)).collect();
                sequence.append(head / 2, head % 2, &rows, &rows).unwrap();
            }
            sequence.save(name).unwrap();
        }
        let mut files = BTreeMap::new();
        for name in sim.names() {
            sim.edit(&name, |bytes| drop(files.insert(name.clone(), bytes.clone())));
        }
        let mut pages = Vec::new();
        for (head, num_rows) in NUM_ROWS.into_iter().enumerate() {
            for start in (0..num_rows).step_by(SHAPE.page_size) {
                pages.push(find(&files, head, start..num_rows.min(start + SHAPE.page_size)));
            }
        }
        Self { files, pages, rows: rows(0) }
    }

    /// The table of the sequence that is changed.
    pub(crate) fn table(&mut self) -> &mut Vec<u8> {
        self.files.get_mut(TABLE).expect("it was saved")
    }

    /// Puts the checksum behind a table's bytes that they should have.
    pub(crate) fn sign_table(&mut self) {
        if let Some((covered, checksum)) = self.table().split_last_chunk_mut() {
            *checksum = Hasher::oneshot(covered).to_le_bytes();
        }
    }

    pub(crate) fn num_pages(&self) -> usize {
        self.pages.len()
    }

    /// Header and rows of a page, whose file was not cut.
    pub(crate) fn page(&mut self, idx: usize) -> &mut [u8] {
        let Written { file, slot, payload, .. } = &self.pages[idx];
        let file = self.files.get_mut(file).expect("it was saved");
        &mut file[*slot..slot + payload.end]
    }

    /// Where in a page its checksum is.
    pub(crate) fn checksum_of_page(&self, idx: usize) -> Range<usize> {
        let start = self.pages[idx].checksum;
        start..start + 8
    }

    /// Cuts the file of a page so many bytes into the page.
    pub(crate) fn cut_page(&mut self, idx: usize, at: usize) {
        let Written { file, slot, .. } = &self.pages[idx];
        self.files.get_mut(file).expect("it was saved").truncate(slot + at);
    }

    /// Gives a page the checksum that it should have, in its header and in the table, which was not changed: its rows are those to be read.
    pub(crate) fn sign_page(&mut self, idx: usize) {
        let Written { head, rows, signed, checksum, payload, .. } = self.pages[idx].clone();
        let page = self.page(idx);
        let new = checksum_of(&page[..checksum], &page[payload.clone()]).to_le_bytes();
        page[checksum..checksum + 8].copy_from_slice(&new);
        let found: Vec<_> = page[payload].chunks(LAYOUT.row_bytes()).map(<[u8]>::to_vec).collect();
        self.rows[head][rows].clone_from_slice(&found);
        let table = self.table();
        let at = table.windows(8).position(|window| window == signed).expect("it has the page");
        table[at..at + 8].copy_from_slice(&new);
        self.pages[idx].signed = new;
        self.sign_table();
    }

    /// The same folder, with what may be read of another.
    pub(crate) fn with_rows_of(&self, other: &Self) -> Self {
        Self { rows: other.rows.clone(), ..self.clone() }
    }

    /// Opens stores on the folder, and asks them for everything. Whatever was changed: a store opens; the other sequence
    /// is whole; what cannot be had is an error of a type; what a table that cannot be read may name stays; a row that can be read is the one that was
    /// written; and nothing is left of what is removed.
    pub(crate) fn check(&self) -> Outcome {
        let sim = self.sim();
        let first = self.look(&open(&sim));
        if let Outcome::Refused(Error::DamagedSave { damage, .. }) = first
            && damage != Damage::Identity
        {
            let names: Vec<_> = self.files.keys().cloned().collect();
            assert_eq!(sim.names(), names, "what an unread table may name stays");
        }
        let store = open(&sim);
        let second = self.look(&store);
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "to look changes nothing");
        store.forget(CHANGED).unwrap();
        check_whole(&store);
        drop(store);
        // Files of a sequence that could not be had go now.
        check_whole(&open(&sim));
        let others = self.pages.iter().map(|page| &page.file);
        let gone: Vec<_> = others.map(String::as_str).chain([TABLE]).collect();
        let left = self.files.keys().filter(|name| !gone.contains(&name.as_str()));
        assert_eq!(sim.names(), left.cloned().collect::<Vec<_>>());
        second
    }

    fn look(&self, store: &Store) -> Outcome {
        assert_eq!(store.saved_names(), [CHANGED, KEPT]);
        check_whole(store);
        let outcome = match store.load(CHANGED) {
            Ok(sequence) => self.read(sequence),
            Err(error) => {
                let is_damaged = matches!(
                    &error,
                    Error::DamagedSave { .. }
                        | Error::ForeignSave { .. }
                        | Error::Io { action: "open", .. }
                );
                assert!(is_damaged, "{error}");
                Outcome::Refused(error)
            }
        };
        let stats = store.stats();
        assert!(stats.ram_peak.pages <= NUM_FRAMES, "{stats:?}");
        outcome
    }

    fn read(&self, mut sequence: Sequence) -> Outcome {
        let [mut num_good, mut num_damaged] = [0, 0];
        for head in 0..NUM_ROWS.len() {
            let rows = sequence.rows(head / 2, head % 2);
            let num_rows = rows.num_rows() as u32;
            // All at once, while none is in RAM, and one by one.
            self.is_good(head, &rows, 0..num_rows);
            for start in (0..num_rows).step_by(SHAPE.page_size) {
                let end = num_rows.min(start.saturating_add(SHAPE.page_size as u32));
                let is_good = self.is_good(head, &rows, start..end);
                num_good += usize::from(is_good);
                num_damaged += usize::from(!is_good);
            }
            let all: Vec<u32> = (0..num_rows).collect();
            if let Err(error) = rows.prefetch(&all).unwrap().wait() {
                assert!(matches!(error, Error::DamagedPage { .. }), "{error}");
            }
        }
        // It goes on from there.
        let new = row(2, 0, 0);
        for head in 0..NUM_ROWS.len() {
            match sequence.append(head / 2, head % 2, &new, &new) {
                Ok(()) => {
                    let rows = sequence.rows(head / 2, head % 2);
                    let last = rows.num_rows() as u32 - 1;
                    assert_eq!(read(&rows, &[last]).unwrap(), [encoded(&new)]);
                }
                Err(error) => assert!(matches!(error, Error::DamagedPage { .. }), "{error}"),
            }
        }
        let store = sequence.store().clone();
        sequence.save("again").unwrap();
        store.forget("again").unwrap();
        Outcome::Loaded { num_good, num_damaged }
    }

    /// Whether rows can be read; they are then those that were written.
    fn is_good(&self, head: usize, rows: &HeadRows, which: Range<u32>) -> bool {
        let positions: Vec<u32> = which.clone().collect();
        match read(rows, &positions) {
            Ok(found) => {
                let written = self.rows[head].get(which.start as usize..which.end as usize);
                assert_eq!(Some(&found[..]), written, "rows {which:?} of head {head}");
                true
            }
            Err(Error::DamagedPage { page, .. }) => {
                assert_eq!((page.layer * 2 + page.kv_head) as usize, head);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn sim(&self) -> Sim {
        let sim = Sim::default();
        for (name, bytes) in &self.files {
            let file = sim.create(&Path::new("folder").join(name)).unwrap();
            file.write_at(0, &[IoSlice::new(bytes)]).unwrap();
        }
        sim
    }
}

fn open(sim: &Sim) -> Store {
    let disk = DiskOptions {
        files: Arc::new(sim.clone()),
        num_workers: 1,
        queue_len: 16,
        file_bytes: 4 * SLOT_ALIGN as u64,
        ..DiskOptions::new("folder", "m")
    };
    let ram_budget_bytes = NUM_FRAMES * SHAPE.page_size * LAYOUT.row_bytes();
    Store::open(StoreOptions { shape: SHAPE, ram_budget_bytes, disk: Some(disk) }).unwrap()
}

/// A row that no other is.
fn row(stream: usize, head: usize, i: usize) -> [f32; 8] {
    std::array::from_fn(|channel| (stream * 1024 + head * 256 + i * 8 + channel) as f32)
}

fn encoded(row: &[f32; 8]) -> Vec<u8> {
    let mut bytes = vec![0; LAYOUT.row_bytes()];
    LAYOUT.encode(row, row, &mut bytes).unwrap();
    bytes
}

fn rows(stream: usize) -> [Vec<Vec<u8>>; 4] {
    let of_head = |head| (0..NUM_ROWS[head]).map(|i| encoded(&row(stream, head, i))).collect();
    [0, 1, 2, 3].map(of_head)
}

fn check_whole(store: &Store) {
    let sequence = store.load(KEPT).unwrap();
    for (head, expected) in rows(1).iter().enumerate() {
        let rows = sequence.rows(head / 2, head % 2);
        let positions: Vec<u32> = (0..rows.num_rows() as u32).collect();
        assert_eq!(&read(&rows, &positions).unwrap(), expected);
    }
}

fn checksum_of(header: &[u8], payload: &[u8]) -> u64 {
    Hasher::oneshot_with_seed(Hasher::oneshot(header), payload)
}

/// Finds a page by its rows, and its checksum by what it is.
fn find(files: &BTreeMap<String, Vec<u8>>, head: usize, rows: Range<usize>) -> Written {
    let payload: Vec<u8> = rows.clone().flat_map(|i| encoded(&row(0, head, i))).collect();
    let is_payload = |window: &[u8]| window == payload;
    let mut found = files.iter().filter_map(|(name, bytes)| {
        bytes.windows(payload.len()).position(is_payload).map(|at| (name, at))
    });
    let (name, at) = found.next().expect("the page was written");
    let slot = at / SLOT_ALIGN * SLOT_ALIGN;
    let page = &files[name][slot..at + payload.len()];
    let payload = at - slot..page.len();
    let expected = |start| checksum_of(&page[..start], &page[payload.clone()]).to_le_bytes();
    let is_checksum = |start: &usize| page[*start..].starts_with(&expected(*start));
    let checksum = (0..payload.start).find(is_checksum).expect("a page has a checksum");
    let signed = expected(checksum);
    Written { head, rows, file: name.clone(), slot, signed, checksum, payload }
}
