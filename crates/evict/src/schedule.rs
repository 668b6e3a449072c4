//! When to choose anew: once, every so many steps, or when what pivots look at has drifted.

use std::fmt;
use std::str::FromStr;

use crate::overlap::{median, overlap};
use crate::{Error, Result, words};

const KNOWN: &str = "once, step, N, drift:W with N and W of at least 1";

/// When tokens are chosen anew while generating.
///
/// As words: `once`, `step` (every one), `N` (every N steps), `drift:W`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// After the prompt, never again.
    Once,
    /// Every so many steps, at least 1.
    Every(usize),
    /// When a [`DriftMonitor`] says so, which looks at this many steps at a time, at least 1 (HeteroCache, arXiv
    /// 2601.13684: 5).
    OnDrift {
        /// Steps from one look to the next.
        steps: usize,
    },
}

impl Schedule {
    /// Whether the schedule alone calls for a choice after `step` steps, the first being 1; drift is not known here.
    #[must_use]
    pub fn is_due(self, step: usize) -> bool {
        match self {
            Self::Every(steps) => step > 0 && step.is_multiple_of(steps.max(1)),
            Self::Once | Self::OnDrift { .. } => false,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Once => f.write_str("once"),
            Self::Every(1) => f.write_str("step"),
            Self::Every(steps) => write!(f, "{steps}"),
            Self::OnDrift { steps } => write!(f, "drift:{steps}"),
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let steps = |number: &str| match words::number::<usize>("schedule", word, number, KNOWN)? {
            0 => Err(words::unknown("schedule", word, KNOWN)),
            steps => Ok(steps),
        };
        match (word, word.strip_prefix("drift:")) {
            ("once", _) => Ok(Self::Once),
            ("step", _) => Ok(Self::Every(1)),
            (_, Some(number)) => Ok(Self::OnDrift { steps: steps(number)? }),
            (number, None) => Ok(Self::Every(steps(number)?)),
        }
    }
}

/// Watches what a pivot head attends to, and says when that has drifted from what was last chosen by.
///
/// Each step gives the set of tokens of highest score; every `steps` of them, the median of their overlaps
/// with the reference set is held against `tau_stable`. Below it, the newest set becomes the reference, and the
/// heads that follow the pivot are to be chosen anew (HeteroCache, arXiv 2601.13684, §3, and its code). The
/// overlap of X and Y is |X ∩ Y| / min(|X|, |Y|), and of an even number of steps the median is the mean of
/// the middle two. Once more than half of the steps are on one side of `tau_stable`, so is the median whatever
/// comes: sets that can change nothing any more need not be worked out ([`needs_set`](Self::needs_set)).
///
/// ```
/// use heterokv_evict::DriftMonitor;
///
/// let mut monitor = DriftMonitor::new(vec![0, 1, 2, 3], 2, 0.5)?;
/// assert!(!monitor.observe(vec![0, 1, 2, 9])?, "one of two steps");
/// assert!(!monitor.observe(vec![0, 1, 8, 9])?, "median 0.625");
/// assert!(!monitor.observe(vec![0, 7, 8, 9])?);
/// assert!(monitor.observe(vec![6, 7, 8, 9])?, "median 0.125");
/// assert_eq!(monitor.reference(), [6, 7, 8, 9]);
/// # Ok::<(), heterokv_evict::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DriftMonitor {
    reference: Vec<u32>,
    steps: usize,
    tau_stable: f64,
    /// Steps since the last look, those that passed too.
    num_seen: usize,
    overlaps: Vec<f64>,
}

impl DriftMonitor {
    /// A monitor that holds coming sets against `reference`: ascending positions, each once, as
    /// [`top_positions`](crate::top_positions) gives them.
    ///
    /// # Errors
    /// [`Error::Zero`] for no steps, [`Error::Range`] for a `tau_stable` outside of [0, 1], [`Error::Ascending`].
    pub fn new(reference: Vec<u32>, steps: usize, tau_stable: f64) -> Result<Self> {
        if steps == 0 {
            return Err(Error::Zero { what: "steps from one look to the next" });
        }
        if !(0.0..=1.0).contains(&tau_stable) {
            let (what, range) = ("stability threshold", "[0, 1]");
            return Err(Error::Range { what, range, value: tau_stable });
        }
        check_ascending(&reference)?;
        Ok(Self { reference, steps, tau_stable, num_seen: 0, overlaps: Vec::new() })
    }

    /// The set that coming ones are held against.
    #[must_use]
    pub fn reference(&self) -> &[u32] {
        &self.reference
    }

    /// Whether the coming step's set can change the decision, or is the reference if there is drift. Where not,
    /// [`pass`](Self::pass) counts the step.
    #[must_use]
    pub fn needs_set(&self) -> bool {
        match self.has_drifted() {
            None => true,
            Some(has_drifted) => has_drifted && self.num_seen + 1 == self.steps,
        }
    }

    /// Counts a step whose set is not needed.
    ///
    /// # Errors
    /// [`Error::SetNeeded`] where [it is](Self::needs_set); the step then does not count.
    pub fn pass(&mut self) -> Result<()> {
        if self.needs_set() {
            return Err(Error::SetNeeded { step: self.num_seen });
        }
        self.num_seen += 1;
        if self.num_seen == self.steps {
            self.begin();
        }
        Ok(())
    }

    /// Takes the set of one step, ascending positions; true when it has drifted, and `set` is the reference from
    /// now on.
    ///
    /// # Errors
    /// [`Error::Ascending`]; the step then does not count.
    pub fn observe(&mut self, set: Vec<u32>) -> Result<bool> {
        check_ascending(&set)?;
        self.overlaps.push(overlap(&self.reference, &set));
        self.num_seen += 1;
        if self.num_seen < self.steps {
            return Ok(false);
        }
        let has_drifted =
            self.has_drifted().unwrap_or_else(|| median(&mut self.overlaps) < self.tau_stable);
        self.begin();
        if has_drifted {
            self.reference = set;
        }
        Ok(has_drifted)
    }

    /// On which side the median is, whatever the rest of the steps say; none where that is open.
    fn has_drifted(&self) -> Option<bool> {
        let num_below = self.overlaps.iter().filter(|&&overlap| overlap < self.tau_stable).count();
        let is_most = |count: usize| count > self.steps / 2;
        match (is_most(num_below), is_most(self.overlaps.len() - num_below)) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }

    fn begin(&mut self) {
        self.num_seen = 0;
        self.overlaps.clear();
    }
}

fn check_ascending(set: &[u32]) -> Result<()> {
    match set.windows(2).position(|pair| pair[0] >= pair[1]) {
        None => Ok(()),
        Some(before) => Err(Error::Ascending { index: before + 1 }),
    }
}

#[cfg(test)]
mod tests;
