//! Random interleavings of everything that a store can do, against plain lists of rows: every byte is equal.

use std::sync::Arc;

use heterokv_offload::{Error, Fetch, Pin, Sequence, Store, StoreOptions, StoreShape, Ticket};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::sim::Sim;
use crate::*;

/// Steps of one case.
const STEPS: usize = 100;

#[derive(Clone, Debug)]
enum Step {
    Append {
        sequence: u8,
        head: u8,
        n: u8,
    },
    Read {
        sequence: u8,
        head: u8,
        picks: u64,
    },
    Fork {
        sequence: u8,
    },
    Truncate {
        sequence: u8,
        head: u8,
        num_rows: u8,
    },
    /// Leaves some rows of a head, or all up to one.
    Keep {
        sequence: u8,
        head: u8,
        picks: u64,
    },
    Drop {
        sequence: u8,
    },
    New,
    /// Reads every page of a sequence: what was in RAM before leaves it.
    Evict {
        sequence: u8,
    },
    Prefetch {
        sequence: u8,
        head: u8,
        picks: u64,
    },
    Cancel,
    Wait,
    Fetch {
        sequence: u8,
        head: u8,
        picks: u64,
    },
    /// Takes what was fetched.
    Take,
    Pin {
        sequence: u8,
        head: u8,
        row: u8,
    },
    Unpin,
    Save {
        sequence: u8,
        name: u8,
        is_with: bool,
    },
    Load {
        name: u8,
    },
    Forget {
        name: u8,
    },
    /// Drops the store with all that is of it, and opens it again.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let (s, h, picks) = (any::<u8>(), 0..4u8, any::<u64>());
    prop_oneof![
        10 => (s, h.clone(), 1..14u8).prop_map(|(sequence, head, n)| Step::Append { sequence, head, n }),
        10 => (s, h.clone(), picks).prop_map(|(sequence, head, picks)| Step::Read { sequence, head, picks }),
        2 => s.prop_map(|sequence| Step::Fork { sequence }),
        3 => (s, h.clone(), 0..40u8)
            .prop_map(|(sequence, head, num_rows)| Step::Truncate { sequence, head, num_rows }),
        4 => (s, h.clone(), prop_oneof![picks, any::<u8>().prop_map(|n| (1 << (n % 64)) - 1)])
            .prop_map(|(sequence, head, picks)| Step::Keep { sequence, head, picks }),
        1 => s.prop_map(|sequence| Step::Drop { sequence }),
        1 => Just(Step::New),
        2 => s.prop_map(|sequence| Step::Evict { sequence }),
        4 => (s, h.clone(), picks)
            .prop_map(|(sequence, head, picks)| Step::Prefetch { sequence, head, picks }),
        1 => Just(Step::Cancel),
        2 => Just(Step::Wait),
        3 => (s, h.clone(), picks)
            .prop_map(|(sequence, head, picks)| Step::Fetch { sequence, head, picks }),
        2 => Just(Step::Take),
        2 => (s, h, any::<u8>()).prop_map(|(sequence, head, row)| Step::Pin { sequence, head, row }),
        2 => Just(Step::Unpin),
        2 => (s, 0..3u8, any::<bool>())
            .prop_map(|(sequence, name, is_with)| Step::Save { sequence, name, is_with }),
        1 => (0..3u8).prop_map(|name| Step::Load { name }),
        1 => (0..3u8).prop_map(|name| Step::Forget { name }),
        1 => Just(Step::Reopen),
    ]
}

/// The rows that a sequence should have, by head.
type Model = Vec<Vec<Vec<u8>>>;

/// A fetch under way, and what it is to give.
struct Fetching {
    fetch: Fetch,
    expected: Vec<u8>,
    /// All frames may have been held for good meanwhile.
    may_fail: bool,
}

struct Machine {
    sim: Sim,
    shape: StoreShape,
    num_frames: usize,
    store: Option<Store>,
    sequences: Vec<(Sequence, Model)>,
    /// By name: rows, and what is beside them.
    saved: [Option<(Model, Option<Vec<u8>>)>; 3],
    tickets: Vec<Ticket>,
    fetches: Vec<Fetching>,
    pins: Vec<Pin>,
    num_appended: usize,
}

impl Machine {
    fn new(page_size: usize, num_frames: usize) -> Self {
        let mut machine = Self {
            sim: Sim::default(),
            shape: shape(page_size),
            num_frames,
            store: None,
            sequences: Vec::new(),
            saved: [None, None, None],
            tickets: Vec::new(),
            fetches: Vec::new(),
            pins: Vec::new(),
            num_appended: 0,
        };
        machine.open();
        machine
    }

    fn open(&mut self) {
        let options = StoreOptions {
            shape: self.shape,
            ram_budget_bytes: self.num_frames * 64,
            disk: Some(disk(Arc::new(self.sim.clone()), Path::new("folder"))),
        };
        self.store = Some(Store::open(options).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn pick(&self, sequence: u8) -> Option<usize> {
        (!self.sequences.is_empty()).then(|| usize::from(sequence) % self.sequences.len())
    }

    /// Whether the frames can all be held for good: by last pages of sequences, and pins.
    fn may_be_full(&self) -> bool {
        let is_open = |rows: &&Vec<Vec<u8>>| !rows.len().is_multiple_of(self.shape.page_size);
        let models = self.sequences.iter().map(|(_, model)| model);
        let num_open = models.flatten().filter(is_open).count();
        let num_pinned: usize = self.pins.iter().map(Pin::num_pages).sum();
        // One to read into, and one to copy a last page from or to begin. A fetch may have a last page that was.
        num_open + num_pinned + self.fetches.len() + 2 > self.num_frames
    }

    fn allow<T>(&self, result: heterokv_offload::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::OutOfMemory { .. }) if self.may_be_full() => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn check(&self, index: usize, head: usize, positions: &[u32]) {
        let (sequence, model) = &self.sequences[index];
        let rows = sequence.rows(head / 2, head % 2);
        assert_eq!(rows.num_rows(), model[head].len());
        if let Some(found) = self.allow(read(&rows, positions)) {
            for (row, &position) in found.iter().zip(positions) {
                assert_eq!(row, &model[head][position as usize], "row {position} of head {head}");
            }
        }
    }

    fn positions(&self, index: usize, head: usize, picks: u64) -> Vec<u32> {
        let num_rows = self.sequences[index].1[head].len() as u32;
        (0..num_rows).filter(|row| picks >> (row % 64) & 1 == 1).collect()
    }

    fn note_full(&mut self) {
        let may_be_full = self.may_be_full();
        self.fetches.iter_mut().for_each(|fetching| fetching.may_fail |= may_be_full);
    }

    fn take(&mut self) {
        for (i, Fetching { mut fetch, expected, may_fail }) in self.fetches.drain(..).enumerate() {
            // In both ways.
            let taken = if i % 2 == 0 { None } else { fetch.try_take() };
            match taken.unwrap_or_else(|| fetch.wait()) {
                Ok(bytes) => assert_eq!(bytes, expected),
                Err(Error::OutOfMemory { .. }) if may_fail => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn step(&mut self, step: Step) {
        self.note_full();
        match step {
            Step::Append { sequence, head, n } => {
                let Some(index) = self.pick(sequence) else { return };
                let head = usize::from(head);
                let start = self.num_appended;
                self.num_appended += usize::from(n);
                let rows: Vec<f32> = (start..self.num_appended).flat_map(|i| row(0, i)).collect();
                let (sequence, model) = &mut self.sequences[index];
                let result = sequence.append(head / 2, head % 2, &rows, &rows);
                // Rows before one that found no room are kept.
                let kept = sequence.rows(head / 2, head % 2).num_rows() - model[head].len();
                model[head].extend((start..start + kept).map(|i| row_bytes(0, i)));
                assert!(result.is_err() || kept == usize::from(n));
                self.allow(result);
            }
            Step::Read { sequence, head, picks } => {
                let Some(index) = self.pick(sequence) else { return };
                let head = usize::from(head);
                self.check(index, head, &self.positions(index, head, picks));
            }
            Step::Fork { sequence } => {
                let Some(index) = self.pick(sequence) else { return };
                if self.sequences.len() < 6 {
                    let (sequence, model) = &self.sequences[index];
                    self.sequences.push((sequence.fork(), model.clone()));
                }
            }
            Step::Truncate { sequence, head, num_rows } => {
                let Some(index) = self.pick(sequence) else { return };
                let (sequence, model) = &mut self.sequences[index];
                let head = usize::from(head);
                sequence.truncate(head / 2, head % 2, usize::from(num_rows));
                model[head].truncate(usize::from(num_rows));
            }
            Step::Keep { sequence, head, picks } => {
                let Some(index) = self.pick(sequence) else { return };
                let head = usize::from(head);
                let kept = self.positions(index, head, picks);
                let kept_result = self.sequences[index].0.keep(head / 2, head % 2, &kept);
                // Without room all rows are there as before.
                if self.allow(kept_result).is_some() {
                    let model = &mut self.sequences[index].1[head];
                    *model = kept.iter().map(|&row| model[row as usize].clone()).collect();
                }
                let num_rows = self.sequences[index].1[head].len();
                assert_eq!(self.sequences[index].0.rows(head / 2, head % 2).num_rows(), num_rows);
            }
            Step::Drop { sequence } => {
                let Some(index) = self.pick(sequence) else { return };
                self.sequences.swap_remove(index);
            }
            Step::New => {
                if self.sequences.len() < 6 {
                    let sequence = self.store().sequence();
                    self.sequences.push((sequence, vec![Vec::new(); 4]));
                }
            }
            Step::Evict { sequence } => {
                let Some(index) = self.pick(sequence) else { return };
                for head in 0..4 {
                    self.check(index, head, &self.positions(index, head, u64::MAX));
                }
            }
            Step::Prefetch { sequence, head, picks } => {
                let Some(index) = self.pick(sequence) else { return };
                let positions = self.positions(index, usize::from(head), picks);
                let rows =
                    self.sequences[index].0.rows(usize::from(head) / 2, usize::from(head) % 2);
                self.tickets.push(rows.prefetch(&positions).unwrap());
            }
            Step::Cancel => {
                if let Some(ticket) = self.tickets.pop() {
                    ticket.cancel();
                }
            }
            Step::Wait => {
                for mut ticket in self.tickets.drain(..) {
                    ticket.wait().unwrap();
                }
            }
            Step::Fetch { sequence, head, picks } => {
                let Some(index) = self.pick(sequence) else { return };
                let head = usize::from(head);
                let positions = self.positions(index, head, picks);
                let (sequence, model) = &self.sequences[index];
                let rows = positions.iter().map(|&row| &model[head][row as usize][..]);
                let expected = rows.collect::<Vec<_>>().concat();
                let fetch = sequence.rows(head / 2, head % 2).fetch(positions);
                self.fetches.push(Fetching { fetch, expected, may_fail: false });
                self.note_full();
                if picks % 5 == 0 {
                    self.fetches.pop();
                }
            }
            Step::Take => self.take(),
            Step::Pin { sequence, head, row } => {
                let Some(index) = self.pick(sequence) else { return };
                let head = usize::from(head);
                let num_rows = self.sequences[index].1[head].len();
                if num_rows > 0 {
                    let rows = self.sequences[index].0.rows(head / 2, head % 2);
                    let pin = self.allow(rows.pin(&[u32::from(row) % num_rows as u32]));
                    self.pins.extend(pin);
                }
            }
            Step::Unpin => self.pins.clear(),
            Step::Save { sequence, name, is_with } => {
                let Some(index) = self.pick(sequence) else { return };
                let (sequence, model) = &mut self.sequences[index];
                let (name, place) = (format!("name-{name}"), usize::from(name));
                let beside = is_with.then(|| beside(self.num_appended));
                match &beside {
                    Some(_) => save_with(sequence, &name, self.num_appended).unwrap(),
                    None => sequence.save(&name).unwrap(),
                }
                self.saved[place] = Some((model.clone(), beside));
            }
            Step::Load { name } => {
                let (name, place) = (format!("name-{name}"), usize::from(name));
                let loaded = self.store().load(&name);
                let found = read_attachment(self.store(), &name);
                match &self.saved[place] {
                    Some((_, Some(beside))) => assert_eq!(&found.unwrap(), beside),
                    Some((_, None)) => assert!(matches!(found, Err(Error::NoAttachment { .. }))),
                    None => assert!(matches!(found, Err(Error::NoSuchSave { .. }))),
                }
                match &self.saved[place] {
                    Some((model, _)) if self.sequences.len() < 6 => {
                        let model = model.clone();
                        self.sequences.push((loaded.unwrap(), model));
                    }
                    Some(_) => drop(loaded.unwrap()),
                    None => assert!(matches!(loaded, Err(Error::NoSuchSave { .. }))),
                }
            }
            Step::Forget { name } => {
                let forgotten = self.store().forget(&format!("name-{name}"));
                assert_eq!(forgotten.is_ok(), self.saved[usize::from(name)].take().is_some());
            }
            Step::Reopen => {
                self.tickets.clear();
                self.fetches.clear();
                self.pins.clear();
                self.sequences.clear();
                self.store = None;
                self.open();
            }
        }
        self.note_full();
        let stats = self.store().stats();
        assert!(stats.ram_peak.pages <= self.num_frames, "{stats:?}");
        assert!(stats.slab_bytes <= self.num_frames * 64, "{stats:?}");
    }

    /// Nothing is left of what nobody has any more.
    fn end(mut self) {
        self.take();
        self.pins.clear();
        for index in 0..self.sequences.len() {
            for head in 0..4 {
                self.check(index, head, &self.positions(index, head, u64::MAX));
            }
        }
        self.tickets.clear();
        self.sequences.clear();
        for name in 0..3 {
            let _ = self.store().forget(&format!("name-{name}"));
        }
        self.store = None;
        assert_eq!(self.sim.names(), [""; 0], "files that nobody uses");
        self.open();
        let stats = self.store().stats();
        assert_eq!((stats.ram.pages, stats.disk.pages, stats.slab_bytes), (0, 0, 0));
    }
}

#[test]
fn every_byte_is_that_of_a_plain_list() {
    let is_long = std::env::var_os("HETEROKV_LONG").is_some();
    let cases = if is_long { 1_000_000 / STEPS as u32 + 1 } else { 120 };
    let strategy = (1..5usize, 5..16usize, prop::collection::vec(step(), STEPS));
    let config =
        Config { cases, max_shrink_iters: 4000, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |(page_size, num_frames, steps)| {
        let mut machine = Machine::new(page_size, num_frames);
        steps.into_iter().for_each(|step| machine.step(step));
        machine.end();
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_wrong_byte_is_noticed() {
    let mut machine = Machine::new(2, 5);
    machine.step(Step::New);
    machine.step(Step::Append { sequence: 0, head: 1, n: 9 });
    machine.sequences[0].1[1][4][3] ^= 1;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        machine.step(Step::Read { sequence: 0, head: 1, picks: u64::MAX });
    }));
    assert!(found.is_err());
}
