//! Frames, slabs and waits.

use super::*;

fn take(memory: &Arc<Memory>) -> Option<Frame> {
    memory.take().expect("the machine has some").map(|(frame, _)| frame)
}

#[test]
fn frames_are_aligned_disjoint_and_within_the_budget() {
    for len in [1, 63, 64, 65, 1000, 100_000] {
        let memory = Memory::new(len, 1 << 22);
        let mut frames: Vec<_> = std::iter::from_fn(|| take(&memory)).collect();
        assert_eq!(frames.len(), (1 << 22) / len.next_multiple_of(64));
        assert!(memory.slab_bytes() <= 1 << 22);
        for (i, frame) in frames.iter_mut().enumerate() {
            assert_eq!(frame.bytes().as_ptr().addr() % ALIGN, 0);
            assert_eq!(frame.bytes().len(), len.next_multiple_of(64));
            frame.bytes_mut().fill(i as u8);
        }
        for (i, frame) in frames.iter().enumerate() {
            assert!(frame.bytes().iter().all(|byte| *byte == i as u8));
        }
        assert_eq!((memory.in_use(), memory.peak()), (frames.len(), frames.len()));
        drop(frames);
        assert_eq!((memory.in_use(), memory.slab_bytes()), (0, 0));
    }
}

#[test]
fn slabs_that_are_empty_are_given_back_but_for_one() {
    let memory = Memory::new(1 << 16, usize::MAX);
    let mut frames: Vec<_> = (0..160).filter_map(|_| take(&memory)).collect();
    assert_eq!(memory.slab_bytes(), 160 << 16, "one, one, two, four, eight, and sixteen at a time");
    frames.truncate(100);
    assert!(memory.slab_bytes() < (100 + 32) << 16, "{}", memory.slab_bytes() >> 16);
    let before = memory.slab_bytes();
    let frame = frames.pop();
    drop(frame);
    frames.extend(take(&memory));
    assert_eq!(memory.slab_bytes(), before, "nothing comes and goes with one frame");
}

#[test]
fn frames_that_come_and_go_take_no_more_slabs_than_the_most_at_a_time() {
    let memory = Memory::new(64, usize::MAX);
    let mut frames = Vec::new();
    for i in 0..10_000_usize {
        if i % 7 < 4 {
            frames.extend(take(&memory));
        } else if !frames.is_empty() {
            frames.swap_remove(i * 31 % frames.len());
        }
        assert!(memory.slab_bytes() <= 2 * 64 * memory.peak(), "{i}");
    }
}

#[test]
fn a_wait_ends_at_once_where_nobody_is_at_work() {
    let memory = Memory::new(64, 64);
    let _frame = take(&memory);
    let mut waiting = memory.waiting();
    assert!(take(&memory).is_none());
    assert!(!waiting.wait());
}

#[test]
fn a_wait_ends_with_a_release() {
    let memory = Memory::new(64, 64);
    let (frame, busy) = memory.take().unwrap().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while memory.num_waiting.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(frame);
            drop(busy);
        });
        let mut waiting = memory.waiting();
        while take(&memory).is_none() {
            assert!(waiting.wait());
        }
    });
}
