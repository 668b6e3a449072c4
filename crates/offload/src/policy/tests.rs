//! The policy beside what it is to beat: reads of a skewed set with scans between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::*;

#[derive(Debug, Default)]
struct Fake {
    id: u64,
    heat: Cell<u8>,
    is_gone: Cell<bool>,
    is_held: Cell<bool>,
    is_resident: Cell<bool>,
    is_awaited: Cell<bool>,
}

impl Entry for Rc<Fake> {
    fn id(&self) -> u64 {
        self.id
    }

    fn heat(&self) -> Option<u8> {
        (!self.is_gone.get()).then(|| self.heat.get())
    }

    fn cool(&self, heat: u8) {
        self.heat.set(heat);
    }

    fn is_awaited(&self) -> bool {
        self.is_awaited.get()
    }

    fn release(&self) -> bool {
        let is_free = !self.is_held.get();
        if is_free {
            self.is_resident.set(false);
        }
        is_free
    }
}

/// A cache of `max_frames` pages over pages that are read one at a time.
struct Cache {
    policy: S3Fifo<Rc<Fake>>,
    pages: Vec<Rc<Fake>>,
    num_resident: usize,
    max_frames: usize,
    hits: usize,
}

impl Cache {
    fn new(max_frames: usize, num_pages: u64) -> Self {
        let page = |id| Rc::new(Fake { id, ..Fake::default() });
        let pages = (0..num_pages).map(page).collect();
        Self { policy: S3Fifo::new(max_frames), pages, num_resident: 0, max_frames, hits: 0 }
    }

    fn read(&mut self, id: usize) {
        let page = Rc::clone(&self.pages[id]);
        if page.is_resident.get() {
            self.hits += 1;
            page.heat.set((page.heat.get() + 1).min(MAX_HEAT));
            return;
        }
        if self.num_resident == self.max_frames {
            assert!(self.policy.evict());
            self.num_resident -= 1;
        }
        page.is_resident.set(true);
        page.heat.set(0);
        self.policy.insert(page);
        self.num_resident += 1;
    }

    fn num_resident_below(&self, end: usize) -> usize {
        self.pages[..end].iter().filter(|page| page.is_resident.get()).count()
    }
}

#[test]
fn a_scan_leaves_the_pages_that_are_read_again() {
    let mut cache = Cache::new(100, 10_000);
    for _ in 0..5 {
        (0..80).for_each(|id| cache.read(id));
    }
    // Ten times the cache, once each.
    (1000..2000).for_each(|id| cache.read(id));
    assert!(cache.num_resident_below(80) >= 78, "{}", cache.num_resident_below(80));
}

#[test]
fn a_page_that_comes_back_soon_is_kept() {
    let mut cache = Cache::new(100, 10_000);
    (100..200).for_each(|id| cache.read(id));
    cache.read(0);
    (200..310).for_each(|id| cache.read(id));
    assert!(!cache.pages[0].is_resident.get(), "it went with the scan");
    cache.read(0);
    (400..490).for_each(|id| cache.read(id));
    assert!(cache.pages[0].is_resident.get(), "its name was remembered");
}

#[test]
fn hits_are_more_than_those_of_least_recently_used_where_scans_come_between() {
    let num_frames = 100;
    let mut cache = Cache::new(num_frames, 100_000);
    let lru = RefCell::new((VecDeque::new(), 0));
    let mut read = |id: usize| {
        cache.read(id);
        let (queue, hits) = &mut *lru.borrow_mut();
        match queue.iter().position(|entry| *entry == id) {
            Some(at) => {
                *hits += 1;
                queue.remove(at);
            }
            None if queue.len() == num_frames => drop(queue.pop_front()),
            None => {}
        }
        queue.push_back(id);
    };
    let mut state = 1_u32;
    for i in 0..20_000_usize {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Half of the reads are of a tenth of two hundred pages, and every second hundred is a scan.
        let r = (state >> 8) as usize;
        read(if i / 100 % 2 == 1 {
            1000 + i
        } else if r.is_multiple_of(2) {
            r / 2 % 20
        } else {
            r / 2 % 200
        });
    }
    let lru_hits = lru.borrow().1;
    assert!(cache.hits * 10 > lru_hits * 11, "{} beside {lru_hits}", cache.hits);
}

#[test]
fn held_pages_stay_and_gone_ones_do_not_count() {
    let mut cache = Cache::new(10, 100);
    (0..10).for_each(|id| cache.read(id));
    cache.pages.iter().for_each(|page| page.is_held.set(true));
    assert!(!cache.policy.evict());
    // One can leave, wherever it is: the small queue, or the main one.
    for id in [3, 7] {
        cache.pages[id].is_held.set(false);
        cache.pages[id].heat.set(MAX_HEAT);
        assert!(cache.policy.evict());
        assert!(!cache.pages[id].is_resident.get());
    }
    assert_eq!(cache.policy.len(), 8);
    cache.pages.iter().for_each(|page| page.is_gone.set(true));
    assert!(!cache.policy.evict());
    assert_eq!(cache.policy.len(), 0);
}

#[test]
fn pages_that_are_gone_do_not_pile_up_where_nothing_has_to_leave() {
    let mut policy = S3Fifo::new(usize::MAX);
    let page = |id| Rc::new(Fake { id, ..Fake::default() });
    let kept: Vec<_> = (0..10).map(page).collect();
    kept.iter().for_each(|page| policy.insert(Rc::clone(page)));
    for id in 10..10_000 {
        let page = page(id);
        page.is_gone.set(true);
        policy.insert(page);
        assert!(policy.small.len() + policy.main.len() <= 2 * kept.len() + FEW + 1);
    }
    assert_eq!(policy.len(), 10);
}

#[test]
fn awaited_pages_leave_last_and_enter_the_queues_when_they_are_read() {
    let mut cache = Cache::new(20, 1_000);
    cache.pages[..5].iter().for_each(|page| page.is_awaited.set(true));
    (0..5).for_each(|id| cache.read(id));
    (100..300).for_each(|id| cache.read(id));
    assert_eq!(cache.num_resident_below(5), 5);
    assert_eq!(cache.policy.len(), 20);
    assert!(!cache.policy.has_room_for_hints(), "a quarter of twenty");
    // The hints of two are taken back, wherever they are among the others.
    [1, 3].iter().for_each(|&id| cache.pages[id].is_awaited.set(false));
    (300..400).for_each(|id| cache.read(id));
    let resident = |cache: &Cache| -> Vec<bool> {
        cache.pages[..5].iter().map(|page| page.is_resident.get()).collect()
    };
    assert_eq!(resident(&cache), [true, false, true, false, true]);
    assert!(cache.policy.has_room_for_hints());
    // Where all others are held, a hint gives way, first one that stands no more.
    cache.pages[5..].iter().for_each(|page| page.is_held.set(true));
    cache.pages[4].is_awaited.set(false);
    assert!(cache.policy.evict());
    assert_eq!(resident(&cache), [true, false, true, false, false]);
    (0..2).for_each(|_| assert!(cache.policy.evict()));
    assert!(!cache.policy.evict());
    assert_eq!(cache.num_resident_below(5), 0);
}

#[test]
fn pages_that_were_all_read_again_can_leave() {
    let mut cache = Cache::new(20, 100);
    cache.read(0);
    cache.read(0);
    cache.read(0);
    assert!(cache.pages[0].heat.get() >= WARM);
    assert!(cache.policy.evict(), "it is the only one");
    assert!(!cache.pages[0].is_resident.get());
}
