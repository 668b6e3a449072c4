//! What holds in every order of the steps of threads: models of the queue, of the waits for room, and of the residency of
//! pages, alone and beside others of their block, run by `loom`.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p heterokv-offload --lib --release models::`

use std::any::Any;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use loom::thread;

use crate::disk::{Disk, File, Files, Header};
use crate::inbox::{Arrival, Inbox};
use crate::memory::{Frame, Memory};
use crate::page::{Page, Wish};
use crate::policy::Entry;
use crate::queue::{Job, Priority, Queue, Refused};
use crate::sync::SharedArc;
use crate::{DiskOptions, PageName};

const NAME: PageName = PageName { sequence: 0, layer: 0, kv_head: 0, page_idx: 0 };

/// A disk that takes everything and keeps nothing.
#[derive(Debug)]
struct Nowhere;

impl Files for Nowhere {
    fn create(&self, _: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(Self))
    }

    fn open(&self, _: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(Self))
    }

    fn names(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        Ok(Box::new(()))
    }
}

impl File for Nowhere {
    fn num_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(0)
    }

    fn write_at(&self, _: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A page that lies in a slot and not in RAM.
fn page_on_disk() -> Arc<Page> {
    page_beside(None)
}

/// The same, in the block of the one before it.
fn page_beside(before: Option<&Arc<Page>>) -> Arc<Page> {
    let options = DiskOptions { files: Arc::new(Nowhere), ..DiskOptions::new("", "") };
    let (disk, _) = Disk::open(&options, 64).unwrap();
    let header = Header { fingerprint: 0, name: NAME, num_rows: 1 };
    let (mut slots, _) = disk.write(&[(header, &[0; 64])]);
    Arc::new(Page::on_disk(0, NAME, 1, slots.pop().unwrap(), before))
}

/// A frame of a memory, filled, if it has one.
fn frame(memory: &Arc<Memory>, byte: u8) -> Option<Frame> {
    memory.take().unwrap().map(|(mut frame, _)| {
        frame.bytes_mut().fill(byte);
        frame
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Number(u32);

impl Job for Number {
    fn sequence(&self) -> u32 {
        self.0
    }

    fn is_before(&self, _: &Self) -> bool {
        false
    }
}

#[test]
fn every_job_is_given_out_once_and_nobody_waits_for_ever() {
    loom::model(|| {
        let queue = Arc::new(Queue::new(1));
        let producer = |number| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.push(Priority::Demand, Number(number)).unwrap())
        };
        let producers = [producer(1), producer(2)];
        let mut found = [queue.pop(), queue.pop()].map(|batch| batch.unwrap().jobs[0].0);
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert_eq!(queue.depths(), [0; 3]);
    });
}

#[test]
fn a_close_wakes_everybody_and_loses_nothing_that_was_taken() {
    loom::model(|| {
        let queue = Arc::new(Queue::new(1));
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || std::iter::from_fn(|| queue.pop()).count())
        };
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let pushed = [1, 2].map(|number| queue.push(Priority::Demand, Number(number)));
                pushed.iter().filter(|pushed| pushed.is_ok()).count()
            })
        };
        queue.close();
        assert_eq!(queue.try_push(Priority::Demand, Number(3)), Err(Refused::Closed));
        assert_eq!(producer.join().unwrap(), worker.join().unwrap());
    });
}

/// Takes a frame, as whoever makes room does: false where it is told that there will be none.
fn take_or_give_up(memory: &Arc<Memory>) -> bool {
    let mut waiting = memory.waiting();
    loop {
        if memory.take().unwrap().is_some() {
            return true;
        }
        if !waiting.wait() {
            return false;
        }
    }
}

#[test]
fn a_frame_that_is_held_for_a_moment_is_waited_for() {
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let taker = || {
            let memory = Arc::clone(&memory);
            thread::spawn(move || take_or_give_up(&memory))
        };
        let takers = [taker(), taker()];
        assert!(take_or_give_up(&memory));
        takers.into_iter().for_each(|taker| assert!(taker.join().unwrap()));
    });
}

#[test]
fn a_frame_that_is_held_for_good_is_not_waited_for() {
    loom::model(|| {
        let memory = Memory::new(64, 2 * 64);
        let kept = frame(&memory, 0);
        let keeper = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || frame(&memory, 1))
        };
        // Before or after the keeper, or never: but the wait has an end.
        let was_there = take_or_give_up(&memory);
        let other = keeper.join().unwrap();
        assert!(was_there || other.is_some());
        assert!(kept.is_some());
    });
}

#[test]
fn what_a_reader_holds_is_not_given_to_others() {
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let page = page_on_disk();
        page.arrive(SharedArc::new(frame(&memory, 7).unwrap()));
        let reader = {
            let (page, memory) = (Arc::clone(&page), Arc::clone(&memory));
            thread::spawn(move || {
                let _busy = memory.enter();
                let frames = page.seat.frames();
                thread::yield_now();
                frames[page.seat.idx()].as_ref().is_none_or(|frame| frame.bytes() == [7; 64])
            })
        };
        let is_released = Arc::downgrade(&page).release();
        if is_released {
            assert!(frame(&memory, 8).is_some(), "what was released is free");
        }
        assert!(reader.join().unwrap(), "what is held stays as it is");
        assert_eq!(page.seat.frame().is_some(), !is_released);
        assert_eq!(memory.in_use(), usize::from(!is_released));
    });
}

#[test]
fn one_of_those_who_let_a_page_go_does() {
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let page = page_on_disk();
        page.arrive(SharedArc::new(frame(&memory, 7).unwrap()));
        let releaser = {
            let page: Weak<Page> = Arc::downgrade(&page);
            thread::spawn(move || page.release())
        };
        let released = [Arc::downgrade(&page).release(), releaser.join().unwrap()];
        assert_ne!(released[0], released[1]);
        assert_eq!(memory.in_use(), 0);
    });
}

/// Does what a worker does with one read, if it is still wanted.
fn work(page: &Page, memory: &Arc<Memory>) {
    if page.begin_read().is_some() {
        page.arrive(SharedArc::new(frame(memory, 7).unwrap()));
    }
}

#[test]
fn readers_of_one_page_all_get_it_and_it_is_read_once() {
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let page = page_on_disk();
        let reader = || {
            let (page, memory) = (Arc::clone(&page), Arc::clone(&memory));
            thread::spawn(move || {
                let inbox = Arc::new(Inbox::of_reader());
                match page.wish(&inbox, 3) {
                    Wish::Here(held) => return held.frame().bytes() == [7; 64],
                    Wish::Coming => {}
                    Wish::ToQueue => work(&page, &memory),
                }
                let (tag, arrival) = inbox.take();
                let Arrival::Here(held) = arrival else { return false };
                tag == 3 && held.frame().bytes() == [7; 64]
            })
        };
        let readers = [reader(), reader()];
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap()));
        assert_eq!(memory.peak(), 1);
    });
}

#[test]
fn a_hint_that_relies_on_another_is_told_how_it_ends() {
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let page = page_on_disk();
        // One finds the queue full.
        let refused = {
            let page = Arc::clone(&page);
            thread::spawn(move || {
                let inbox = Arc::new(Inbox::of_hint());
                if let Wish::ToQueue = page.wish(&inbox, 0) {
                    let is_withdrawn = page.withdraw(&inbox);
                    page.abandon();
                    if !is_withdrawn {
                        inbox.take();
                    }
                }
            })
        };
        let inbox = Arc::new(Inbox::of_hint());
        match page.wish(&inbox, 0) {
            Wish::ToQueue => work(&page, &memory),
            Wish::Coming | Wish::Here(_) => {}
        }
        let arrival = inbox.take().1;
        assert!(matches!(arrival, Arrival::Loaded | Arrival::Dropped));
        refused.join().unwrap();
    });
}

#[test]
fn a_reader_who_joins_a_hint_is_not_let_down_by_it() {
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let page = page_on_disk();
        let hint = {
            let (page, memory) = (Arc::clone(&page), Arc::clone(&memory));
            thread::spawn(move || {
                let inbox = Arc::new(Inbox::of_hint());
                if let Wish::ToQueue = page.wish(&inbox, 0)
                    && page.withdraw(&inbox)
                {
                    page.abandon();
                    // And its place in the queue comes up all the same.
                    work(&page, &memory);
                }
            })
        };
        let inbox = Arc::new(Inbox::of_reader());
        let arrival = match page.wish(&inbox, 0) {
            Wish::Here(held) => Arrival::Here(held),
            Wish::Coming => inbox.take().1,
            Wish::ToQueue => {
                work(&page, &memory);
                inbox.take().1
            }
        };
        assert!(matches!(arrival, Arrival::Here(_)));
        hint.join().unwrap();
    });
}

/// Brings a page to RAM in a frame that is filled so.
fn bring(page: &Page, memory: &Arc<Memory>, byte: u8) {
    page.arrive(SharedArc::new(frame(memory, byte).unwrap()));
}

/// Looks at all pages of a block twice, as a reader does that holds it: the first byte of each that is there.
fn look(page: &Page, memory: &Arc<Memory>) -> [[Option<u8>; 2]; 2] {
    let _busy = memory.enter();
    let frames = page.seat.frames();
    let bytes = || [0, 1].map(|idx| frames[idx].as_ref().map(|frame| frame.bytes()[0]));
    let first = bytes();
    thread::yield_now();
    [first, bytes()]
}

/// What happened in at least one of a model's orders.
struct Once(AtomicBool);

impl Once {
    const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn note(&self, has_happened: bool) {
        self.0.fetch_or(has_happened, Ordering::Relaxed);
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.0.load(Ordering::Relaxed), "no order has it");
    }
}

#[test]
fn a_page_that_comes_while_another_of_its_block_is_read_leaves_that_one_where_it_is() {
    static IS_SEEN: Once = Once::new();
    static IS_NOT_SEEN: Once = Once::new();
    loom::model(|| {
        let memory = Memory::new(64, 2 * 64);
        let first = page_on_disk();
        let second = page_beside(Some(&first));
        assert!(first.seat.is_beside(&second.seat));
        bring(&first, &memory, 7);
        let reader = {
            let (first, memory) = (Arc::clone(&first), Arc::clone(&memory));
            thread::spawn(move || look(&first, &memory))
        };
        bring(&second, &memory, 8);
        let [before, after] = reader.join().unwrap();
        assert_eq!(before, after, "a list does not change while somebody has it");
        assert_eq!(before[0], Some(7));
        assert!(matches!(before[1], None | Some(8)));
        IS_SEEN.note(before[1].is_some());
        IS_NOT_SEEN.note(before[1].is_none());
        let pages = [&first, &second];
        assert_eq!(pages.map(|page| page.seat.frame().is_some()), [true; 2], "both are there");
        assert_eq!(pages.map(|page| Arc::downgrade(page).release()), [true; 2], "and can leave");
        assert_eq!(memory.in_use(), 0);
    });
    IS_SEEN.check();
    IS_NOT_SEEN.check();
}

#[test]
fn a_page_in_a_list_that_was_replaced_is_not_given_to_others_while_somebody_reads_it() {
    static IS_RELEASED: Once = Once::new();
    static IS_HELD: Once = Once::new();
    loom::model(|| {
        let memory = Memory::new(64, 2 * 64);
        let first = page_on_disk();
        let second = page_beside(Some(&first));
        bring(&first, &memory, 7);
        let reader = {
            let (first, memory) = (Arc::clone(&first), Arc::clone(&memory));
            thread::spawn(move || look(&first, &memory))
        };
        // Of the lists, the reader may have the old one, and nobody has the new one.
        bring(&second, &memory, 8);
        let is_released = Arc::downgrade(&first).release();
        let other = frame(&memory, 9);
        assert_eq!(other.is_some(), is_released, "what was released is free, and nothing else");
        let [before, after] = reader.join().unwrap();
        assert_eq!(before, after, "what is held stays as it is");
        assert!(matches!(before[0], None | Some(7)));
        IS_RELEASED.note(is_released);
        IS_HELD.note(!is_released);
        assert_eq!(first.seat.frame().is_some(), !is_released);
        assert_eq!(memory.in_use(), 2);
    });
    IS_RELEASED.check();
    IS_HELD.check();
}

#[test]
fn a_page_that_goes_while_its_block_is_read_is_there_until_the_reader_has_left() {
    static IS_SEEN: Once = Once::new();
    static IS_GONE: Once = Once::new();
    loom::model(|| {
        let memory = Memory::new(64, 2 * 64);
        let first = page_on_disk();
        let second = page_beside(Some(&first));
        bring(&first, &memory, 7);
        bring(&second, &memory, 8);
        let reader = {
            let (first, memory) = (Arc::clone(&first), Arc::clone(&memory));
            thread::spawn(move || look(&first, &memory))
        };
        drop(second);
        let other = frame(&memory, 9);
        let [before, after] = reader.join().unwrap();
        assert_eq!(before, after, "what is held stays as it is");
        assert_eq!(before[0], Some(7));
        assert!(matches!(before[1], None | Some(8)));
        IS_SEEN.note(before[1].is_some());
        IS_GONE.note(before[1].is_none());
        assert_eq!(memory.in_use(), 1 + usize::from(other.is_some()), "its frame is free");
        assert!(Arc::downgrade(&first).release());
    });
    IS_SEEN.check();
    IS_GONE.check();
}

#[test]
fn a_hint_that_is_taken_back_while_its_page_arrives_leaves_nothing_awaited() {
    static IS_READ: Once = Once::new();
    static IS_NOT_READ: Once = Once::new();
    loom::model(|| {
        let memory = Memory::new(64, 64);
        let page = page_on_disk();
        let inbox = Arc::new(Inbox::of_hint());
        assert!(matches!(page.wish(&inbox, 0), Wish::ToQueue));
        let worker = {
            let (page, memory) = (Arc::clone(&page), Arc::clone(&memory));
            thread::spawn(move || work(&page, &memory))
        };
        page.take_back(&inbox);
        worker.join().unwrap();
        let is_read = page.seat.frame().is_some();
        IS_READ.note(is_read);
        IS_NOT_READ.note(!is_read);
        assert!(!Arc::downgrade(&page).is_awaited(), "it leaves as others do");
        assert!(matches!(inbox.try_take(), None | Some((0, Arrival::Loaded))));
        assert_eq!(memory.in_use(), usize::from(is_read));
        assert_eq!(Arc::downgrade(&page).release(), is_read);
    });
    IS_READ.check();
    IS_NOT_READ.check();
}
