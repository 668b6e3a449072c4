//! A change of topic, and back: the context is the beginning of one chapter and the beginning of another; behind it the
//! second goes on, and then the first comes back. Selections made once, selections made anew on drift, and such that are
//! made anew at every step, step by step against `full`.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use heterokv_cache::KvCache;
use heterokv_eval::{Distribution, Steps};
use heterokv_model::Model;

use super::grid::{Entry, Fit, Standing};
use super::quality::NUM_STEPS;
use super::{CONTEXTS, Part, Suite};
use crate::args::at_least_one;
use crate::bars::{Bar, Limit, sheet};
use crate::outcome::Table;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// Steps of a running median, and so many of them in a row have to be low.
const MEDIAN_STEPS: usize = 8;

/// First token of the first chapter's passage that is said once more.
const SAID_FIRST: usize = 500;

/// Columns of the table before and behind the running medians.
const COLUMNS: [&str; 7] =
    ["context", "behind the change", "selection", "cache", "ratio", "KL before", "KL behind"];
const LAST_COLUMNS: [&str; 5] =
    ["top-1 behind", "back after", "made anew before", "made anew behind", "tok/s"];

/// Steps behind the change at which the running median is shown.
const SHOWN_STEPS: [usize; 4] = [8, 16, 32, 128];

/// The caches of --drift, and when one is back.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Drift")]
pub(super) struct DriftArgs {
    /// The chapters of the text, by their numbers: the context ends with the second, and the first comes back
    #[arg(long, value_name = "A,B", default_value = "16,32", value_parser = two_numbers)]
    chapters: Chapters,
    /// The cache whose selection is made once
    #[arg(long, value_name = "SPEC", default_value = "heterocache:50%,every=once")]
    frozen: String,
    /// A cache whose selection is made anew on drift; may be repeated
    #[arg(long, value_name = "SPEC", default_values = ["heterocache:50%", "heterocache:50%,refresh=sync"])]
    refreshed: Vec<String>,
    /// The cache whose selection is made anew at every step: what can be recovered
    #[arg(
        long,
        value_name = "SPEC",
        default_value = "heterocache:50%,every=drift:1,tau=1,refresh=sync"
    )]
    fresh: String,
    /// A cache is back where the running median of its KL is at most so many times that of --fresh
    #[arg(long, value_name = "TIMES", default_value_t = 2.0, value_parser = times)]
    within: f64,
    /// Steps behind the change by which --refreshed has to be back
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = at_least_one)]
    by: usize,
}

/// Numbers of two chapters.
type Chapters = [usize; 2];

fn two_numbers(text: &str) -> Result<Chapters, String> {
    let numbers = text.split_once(',').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
    numbers
        .filter(|[a, b]| a != b)
        .ok_or_else(|| "the numbers of two chapters, as in 16,32".to_owned())
}

fn times(text: &str) -> Result<f64, String> {
    let times = text.parse().ok().filter(|times: &f64| times.is_finite() && *times >= 1.0);
    times.ok_or_else(|| "a number of at least 1, such as 2".to_owned())
}

/// How a cache selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Selects {
    Once,
    OnDrift,
    Always,
}

impl Selects {
    fn words(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::OnDrift => "on drift",
            Self::Always => "at every step",
        }
    }
}

/// What is fed behind a context, of the first chapter in the end.
struct Turn {
    words: &'static str,
    context: Vec<u32>,
    /// One more than there are steps.
    tokens: Vec<u32>,
    /// Steps of the second chapter.
    change: usize,
}

/// A cache behind a context, step by step.
struct Track {
    context: usize,
    behind: &'static str,
    selects: Selects,
    name: String,
    ratio: f64,
    steps: Steps,
    change: usize,
    seconds: Samples,
    /// Steps behind the change after which it is back.
    back_after: Option<usize>,
    /// Selections that drift has had made anew, before the change and behind it.
    num_refreshes: [u64; 2],
}

/// Measures every context.
///
/// # Errors
/// Caches that there are not, and chapters that are too short.
pub(super) fn run(suite: &Suite<'_>) -> Result<Part> {
    let terms = match suite.arguments.test {
        true => DriftArgs::small(),
        false => suite.arguments.drift_terms.clone(),
    };
    let shape = suite.opened.shape()?;
    let fingerprint = suite.opened.fingerprint();
    let heads = suite.arguments.heads.as_deref();
    let entries = terms.entries(Fit { shape: &shape, fingerprint: &fingerprint, heads })?;
    let model = suite.opened.model(suite.level)?;
    let num_steps = if suite.arguments.test { 40 } else { NUM_STEPS };
    let mut tracks = Vec::new();
    for context in suite.contexts(&CONTEXTS, &[1400]) {
        let half = context / 2;
        let chapters = suite.opened.chapters(terms.chapters, half + num_steps / 2 + 1)?;
        for turn in turns(&chapters, half, num_steps)? {
            suite.say(&format!("drift: {context} tokens, the first chapter {}", turn.words));
            tracks.extend(measure(&model, &turn, &entries, terms.within)?);
        }
    }
    let bars = bars(&tracks, &terms);
    let is_held = !suite.arguments.check || bars.iter().all(Bar::is_held);
    let title = format!(
        "Chapters {} and {} on {}: steps until the KL is within {} times that of a selection at every step",
        terms.chapters[0], terms.chapters[1], suite.opened.name, terms.within
    );
    let tables = vec![
        Table::new("evict-drift", table(title, &tracks)),
        Table::new("evict-drift-bars", sheet("Bars of drift", &bars)),
    ];
    Ok(Part { name: "drift", tables, is_held })
}

impl DriftArgs {
    /// What a tiny model can have in the place of the presets.
    fn small() -> Self {
        let spec = |select: &str| {
            format!("keys=int8-token,values=f16@host,select={select},sinks=2,recent=8")
        };
        Self {
            chapters: [1, 2],
            frozen: spec("top-k:2"),
            refreshed: vec![spec("top-p:0.9")],
            fresh: spec("none"),
            within: 2.0,
            by: 20,
        }
    }

    fn entries(&self, fit: Fit<'_>) -> Result<Vec<(Selects, Entry)>> {
        let refreshed = self.refreshed.iter().map(|spec| (Selects::OnDrift, spec));
        let specs = std::iter::once((Selects::Once, &self.frozen))
            .chain(refreshed)
            .chain([(Selects::Always, &self.fresh)]);
        let entry = |(selects, spec): (Selects, &String)| {
            let mut entries = fit.specs(std::slice::from_ref(spec))?;
            let entry = entries.remove(0);
            if let Standing::Unreachable { least } = entry.standing {
                anyhow::bail!("{spec} cannot be kept for this model; the least is {least:.1} %");
            }
            Ok((selects, entry))
        };
        specs.map(entry).collect()
    }
}

/// The context of both chapters' beginnings, `half` tokens each, and behind it the second going on, then the first: where
/// it had come to, and what it has said already.
fn turns(chapters: &[Vec<u32>; 2], half: usize, num_steps: usize) -> Result<[Turn; 2]> {
    let change = num_steps / 2;
    let said = SAID_FIRST..SAID_FIRST + num_steps - change + 1;
    ensure!(
        said.end <= half,
        "of {half} tokens of a chapter {} are said once more; give longer --contexts",
        said.end
    );
    let [first, second] = chapters;
    let context = [&first[..half], &second[..half]].concat();
    let turn = |words, behind: &[u32]| Turn {
        words,
        context: context.clone(),
        tokens: [&second[half..half + change], behind].concat(),
        change,
    };
    let goes_on = &first[half..half + num_steps - change + 1];
    Ok([turn("goes on", goes_on), turn("is said once more", &first[said])])
}

/// Puts the turn to `full` and to every cache, side by side.
fn measure(
    model: &Model,
    turn: &Turn,
    entries: &[(Selects, Entry)],
    within: f64,
) -> Result<Vec<Track>> {
    let new = |config| KvCache::new(model.kv_shape(), config, model.level(), None);
    let mut caches = vec![new(heterokv_cache::CacheConfig::Full)?];
    for candidate in entries.iter().filter_map(|(_, entry)| entry.candidate()) {
        caches.push(new(candidate.config.clone())?);
    }
    model.prefill(&turn.context, &mut caches, None)?;
    let mut full = caches.remove(0);
    let mut tracks: Vec<Track> = entries
        .iter()
        .map(|(selects, entry)| Track {
            context: turn.context.len(),
            behind: turn.words,
            selects: *selects,
            name: entry.name.clone(),
            ratio: 0.0,
            steps: Steps::default(),
            change: turn.change,
            seconds: Samples::default(),
            back_after: None,
            num_refreshes: [0; 2],
        })
        .collect();
    for (step, pair) in turn.tokens.windows(2).enumerate() {
        let [fed, next] = *pair else { continue };
        let says = |cache: &mut KvCache| -> Result<Distribution> {
            let hidden = model.extend(&[fed], cache)?;
            Ok(Distribution::of_logits(&model.logits(&hidden)?))
        };
        let reference = says(&mut full)?;
        for (track, cache) in tracks.iter_mut().zip(&mut caches) {
            let start = Instant::now();
            let own = says(cache)?;
            track.seconds.push(start.elapsed().as_secs_f64());
            track.steps.push(&reference, &own, next)?;
            track.ratio = track.ratio.max(cache.ratio());
            let before: u64 = track.num_refreshes.iter().sum();
            track.num_refreshes[usize::from(step >= turn.change)] += cache.num_refreshes() - before;
        }
    }
    let fresh = tracks.iter().find(|track| track.selects == Selects::Always);
    let fresh = fresh.map(|track| track.behind().to_vec()).unwrap_or_default();
    for track in &mut tracks {
        track.back_after = back_after(track.behind(), &fresh, within);
    }
    Ok(tracks)
}

impl Track {
    /// KL of the steps behind the change.
    fn behind(&self) -> &[f64] {
        &self.steps.kl[self.change..]
    }
}

/// The running median: of the first [`MEDIAN_STEPS`] steps, of those from the second on, and so on.
fn medians(steps: &[f64]) -> Vec<f64> {
    let windows = steps.windows(MEDIAN_STEPS);
    windows.map(|window| window.iter().copied().collect::<Samples>().median()).collect()
}

/// Steps after which the median of the last [`MEDIAN_STEPS`] is at most `within` times that of `fresh`, and stays so for as
/// many steps or to the end: as many as it takes at least. None where that does not come.
fn back_after(own: &[f64], fresh: &[f64], within: f64) -> Option<usize> {
    let medians = |steps: &[f64]| -> Vec<f64> {
        steps
            .windows(MEDIAN_STEPS)
            .map(|w| w.iter().copied().collect::<Samples>().median())
            .collect()
    };
    let is_low: Vec<bool> = medians(own)
        .iter()
        .zip(medians(fresh))
        .map(|(own, fresh)| *own <= within * fresh)
        .collect();
    let stays = |&begin: &usize| is_low[begin..].iter().take(MEDIAN_STEPS).all(|&is_low| is_low);
    (0..is_low.len()).find(stays).map(|begin| begin + MEDIAN_STEPS)
}

/// Who selects anew on drift is back in time; who does not is shown beside it, and holds no bar.
fn bars(tracks: &[Track], terms: &DriftArgs) -> Vec<Bar> {
    let refreshed = tracks.iter().filter(|track| track.selects == Selects::OnDrift);
    let bar = |track: &Track| Bar {
        what: format!(
            "steps until it is back, {} tokens, the first {}",
            track.context, track.behind
        ),
        by: track.name.clone(),
        reached: track.back_after.map_or(f64::INFINITY, |steps| steps as f64),
        limit: Limit::AtMost(terms.by as f64),
    };
    refreshed.map(bar).collect()
}

fn table(title: String, tracks: &[Track]) -> Sheet {
    let shown = SHOWN_STEPS.map(|step| format!("at {step}"));
    let columns = COLUMNS.into_iter().chain(shown.iter().map(String::as_str)).chain(LAST_COLUMNS);
    let mut sheet = Sheet::new(title, &columns.collect::<Vec<_>>());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    for track in tracks {
        let top1: Vec<f64> =
            track.steps.top1[track.change..].iter().map(|&t| f64::from(t)).collect();
        let back = match track.back_after {
            Some(steps) => Cell::Number(steps as f64, 0),
            None => Cell::text("never"),
        };
        let medians = medians(track.behind());
        let at = |step: usize| {
            let median = step.checked_sub(MEDIAN_STEPS).and_then(|first| medians.get(first));
            median.map_or(Cell::text(""), |&median| Cell::Scientific(median))
        };
        let mut cells = vec![
            Cell::Number(track.context as f64, 0),
            Cell::text(format!("the first {}", track.behind)),
            Cell::text(track.selects.words()),
            Cell::text(&track.name),
            Cell::Number(100.0 * track.ratio, 1),
            Cell::Scientific(mean(&track.steps.kl[..track.change])),
            Cell::Scientific(mean(track.behind())),
        ];
        cells.extend(SHOWN_STEPS.map(at));
        cells.extend([
            Cell::Number(100.0 * mean(&top1), 1),
            back,
            Cell::Number(track.num_refreshes[0] as f64, 0),
            Cell::Number(track.num_refreshes[1] as f64, 0),
            Cell::Number(1.0 / track.seconds.median(), 1),
        ]);
        sheet.push(cells);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_chapters_come_and_the_first_comes_back() {
        let chapters = [(0..1000).collect(), (5000..6000).collect()];
        let [goes_on, said] = turns(&chapters, 700, 20).expect("they are long enough");
        assert_eq!(
            (goes_on.context[699], goes_on.context[700], goes_on.context.len()),
            (699, 5000, 1400)
        );
        assert_eq!(goes_on.tokens[..10], (5700..5710).collect::<Vec<u32>>());
        assert_eq!(goes_on.tokens[10..], (700..711).collect::<Vec<u32>>());
        assert_eq!(said.tokens[10..], (500..511).collect::<Vec<u32>>());
        assert_eq!((said.change, said.tokens.len()), (10, 21));
        assert!(turns(&chapters, 505, 20).is_err(), "there is not so much to be said again");
    }

    #[test]
    fn a_loss_that_ends_is_told_from_one_that_stays() {
        let fresh = [0.01; 100];
        let with = |lost: std::ops::Range<usize>| {
            let mut own = fresh;
            own[lost].fill(1.0);
            back_after(&own, &fresh, 2.0)
        };
        assert_eq!(with(0..0), Some(8));
        // Four of eight steps are low: the median is half way, and one later it is low.
        assert_eq!(with(0..20), Some(25));
        assert_eq!(with(0..100), None);
        // A single good stretch is no return.
        let mut own = [1.0; 100];
        own[30..38].fill(0.01);
        assert_eq!(back_after(&own, &fresh, 2.0), None);
        assert_eq!(back_after(&[f64::NAN; 100], &fresh, 2.0), None);
        assert_eq!(back_after(&[0.0; 7], &fresh, 2.0), None, "too few steps for a median");
    }

    #[test]
    fn who_never_comes_back_misses_the_bar() {
        let track = |back_after| Track {
            context: 4096,
            behind: "goes on",
            selects: Selects::OnDrift,
            name: "x".to_owned(),
            ratio: 0.5,
            steps: Steps::default(),
            change: 0,
            seconds: Samples::default(),
            back_after,
            num_refreshes: [0; 2],
        };
        let terms = DriftArgs::small();
        let is_held = |back_after| bars(&[track(back_after)], &terms).iter().all(Bar::is_held);
        assert!(is_held(Some(20)) && !is_held(Some(21)) && !is_held(None));
    }
}
