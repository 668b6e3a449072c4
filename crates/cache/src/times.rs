//! Where the time of decode steps goes.

use std::ops::Add;
use std::time::{Duration, Instant};

/// Time that the attention of decode steps took, by what it was spent on. All of it together is the time of
/// [`KvCache::attend`](crate::KvCache::attend) and of what decides in [`KvCache::append`](crate::KvCache::append) what is
/// forgotten: of what goes on side by side, each part has its share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Scores of coded keys, with the tables of the queries for them, and the softmax weights that the scores come to.
    pub scores: Duration,
    /// Attention over exact rows on the device.
    pub resident: Duration,
    /// The choice of the coded tokens that are read, by their softmax weights.
    pub selection: Duration,
    /// Attention over rows of the host, with waiting for them, and hints for the next.
    pub host: Duration,
    /// What is noted of queries and weights for decisions to come, these decisions, and what they have moved.
    pub policy: Duration,
}

impl StepTimes {
    /// All parts together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.scores + self.resident + self.selection + self.host + self.policy
    }

    /// Shares out the time since `start` among what went on side by side.
    pub(crate) fn add(&mut self, start: Instant, took: Took) {
        let all = start.elapsed();
        let Took { scores, resident, selection, host } = took;
        let sum = (scores + resident + selection + host).as_secs_f64().max(f64::MIN_POSITIVE);
        let share = |part: Duration| all.mul_f64(part.as_secs_f64() / sum);
        let [resident, selection, host] = [resident, selection, host].map(share);
        self.resident += resident;
        self.selection += selection;
        self.host += host;
        // All the rest, so that nothing is lost to rounding, or where no part took any time that the clock sees.
        self.scores += all.saturating_sub(resident + selection + host);
    }
}

/// What the parts of a step took, on all threads together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    pub(crate) scores: Duration,
    pub(crate) resident: Duration,
    pub(crate) selection: Duration,
    pub(crate) host: Duration,
}

impl Add for Took {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            scores: self.scores + other.scores,
            resident: self.resident + other.resident,
            selection: self.selection + other.selection,
            host: self.host + other.host,
        }
    }
}

/// What `work` gives, and the time that it takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_side_by_side_is_shared_out_and_nothing_is_lost() {
        let mut times = StepTimes::default();
        let [one, three] = [1, 3].map(Duration::from_millis);
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(4));
        let took = Took { scores: three, resident: one, selection: one, host: three };
        times.add(start, took);
        let [scores, resident, selection, host] =
            [times.scores, times.resident, times.selection, times.host]
                .map(|part| part.as_secs_f64());
        assert!((3.0 * resident / scores - 1.0).abs() < 1e-3, "{times:?}");
        assert!((3.0 * selection / host - 1.0).abs() < 1e-3, "{times:?}");
        assert!(times.total() >= Duration::from_millis(4));
        // Where none took any time that the clock sees, all of it counts all the same.
        let mut times = StepTimes::default();
        times.add(start, Took::default());
        assert!(times.total() >= Duration::from_millis(4) && times.resident.is_zero());
        let twice = took + took;
        assert_eq!((twice.scores, twice.resident), (2 * three, 2 * one));
        assert_eq!((twice.selection, twice.host), (2 * one, 2 * three));
    }
}
