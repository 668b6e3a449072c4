//! Where the time of decode steps goes.

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

    /// Shares out the time since `start` between exact rows and scores, which went on side by side and took so long each.
    pub(crate) fn add_scan(&mut self, start: Instant, resident: Duration, scores: Duration) {
        let [resident, scores] = share_out(start, resident, scores);
        self.resident += resident;
        self.scores += scores;
    }

    /// Shares out the time since `start` between softmax weights and choices by them, which went on side by side and took so
    /// long each on all threads together.
    pub(crate) fn add_choice(&mut self, start: Instant, weights: Duration, selection: Duration) {
        let [weights, selection] = share_out(start, weights, selection);
        self.scores += weights;
        self.selection += selection;
    }
}

/// The time since `start` in two parts that are to each other as `one` to `other`; the other's where neither took any.
fn share_out(start: Instant, one: Duration, other: Duration) -> [Duration; 2] {
    let both = start.elapsed();
    let share = one.as_secs_f64() / (one + other).as_secs_f64().max(f64::MIN_POSITIVE);
    let one = both.mul_f64(share);
    [one, both - one]
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
        times.add_scan(start, one, three);
        let (resident, scores) = (times.resident.as_secs_f64(), times.scores.as_secs_f64());
        assert!((3.0 * resident / scores - 1.0).abs() < 1e-3, "{times:?}");
        assert!(times.total() >= Duration::from_millis(4));
        // Where neither took any time that the clock sees, all of it counts all the same.
        let mut times = StepTimes::default();
        times.add_scan(start, Duration::ZERO, Duration::ZERO);
        assert!(times.total() >= Duration::from_millis(4) && times.resident.is_zero());
        let mut times = StepTimes::default();
        times.add_choice(start, three, one);
        let (weights, selection) = (times.scores.as_secs_f64(), times.selection.as_secs_f64());
        assert!((weights / (3.0 * selection) - 1.0).abs() < 1e-3, "{times:?}");
        assert!(times.total() >= Duration::from_millis(4));
    }
}
