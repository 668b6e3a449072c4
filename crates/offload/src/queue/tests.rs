//! Order, bounds and fairness.

use std::sync::Arc;

use super::*;

/// A job of a sequence, with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Read(u32, u32);

impl Job for Read {
    fn sequence(&self) -> u32 {
        self.0
    }

    fn is_before(&self, next: &Self) -> bool {
        self.1 + 1 == next.1
    }
}

fn pop(queue: &Queue<Read>) -> Vec<Read> {
    queue.pop().expect("the queue is open").jobs
}

#[test]
fn demand_goes_before_prefetch_before_write_behind() {
    let queue = Queue::new(4);
    queue.try_push(Priority::WriteBehind, Read(0, 1)).unwrap();
    queue.try_push(Priority::Prefetch, Read(0, 3)).unwrap();
    queue.try_push(Priority::Demand, Read(0, 5)).unwrap();
    assert_eq!(queue.depths(), [1, 1, 1]);
    assert_eq!([pop(&queue), pop(&queue), pop(&queue)], [[Read(0, 5)], [Read(0, 3)], [Read(0, 1)]]);
}

#[test]
fn sequences_take_turns() {
    let queue = Queue::new(100);
    for slot in 0..50 {
        queue.try_push(Priority::Prefetch, Read(7, 2 * slot)).unwrap();
    }
    queue.try_push(Priority::Prefetch, Read(8, 0)).unwrap();
    queue.try_push(Priority::Prefetch, Read(9, 0)).unwrap();
    let turns: Vec<_> = (0..5).map(|_| pop(&queue)[0].0).collect();
    assert_eq!(turns, [7, 8, 9, 7, 7]);
}

#[test]
fn neighbours_come_together_up_to_a_bound() {
    let queue = Queue::new(100);
    for slot in (0..3).chain(5..30) {
        queue.try_push(Priority::Demand, Read(1, slot)).unwrap();
        queue.try_push(Priority::Demand, Read(2, 2 * slot)).unwrap();
    }
    let lens: Vec<_> = (0..6).map(|_| pop(&queue).len()).collect();
    assert_eq!(lens, [3, 1, 16, 1, 9, 1]);
}

#[test]
fn each_lane_is_bounded_by_itself() {
    let queue = Queue::new(2);
    for priority in [Priority::Prefetch, Priority::Demand] {
        queue.try_push(priority, Read(0, 0)).unwrap();
        queue.try_push(priority, Read(1, 0)).unwrap();
        assert_eq!(queue.try_push(priority, Read(2, 0)), Err(Refused::Full));
    }
}

#[test]
fn a_producer_waits_for_a_place_and_a_worker_for_a_job() {
    let queue = Arc::new(Queue::new(1));
    let worker = {
        let queue = Arc::clone(&queue);
        std::thread::spawn(move || {
            let mut jobs = Vec::new();
            while let Some(batch) = queue.pop() {
                jobs.extend(batch.jobs);
            }
            jobs
        })
    };
    let jobs: Vec<_> = (0..100).map(|i| Read(i % 3, 2 * i)).collect();
    for job in &jobs {
        queue.push(Priority::Demand, *job).unwrap();
    }
    queue.close();
    let mut done = worker.join().unwrap();
    done.sort_by_key(|job| job.1);
    assert_eq!(done, jobs, "what is queued is done after the close");
    assert_eq!(queue.push(Priority::Demand, Read(0, 0)), Err(Refused::Closed));
    assert!(queue.pop().is_none());
}

#[test]
fn clearing_makes_room() {
    let queue = Queue::new(1);
    queue.try_push(Priority::Demand, Read(0, 0)).unwrap();
    queue.clear();
    queue.try_push(Priority::Demand, Read(0, 1)).unwrap();
    assert_eq!(pop(&queue), [Read(0, 1)]);
}
