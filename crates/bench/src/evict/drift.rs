//! A change of topic, and back: the context is the beginning of one chapter and the beginning of another; behind it the
//! second goes on, and then the first comes back. Selections made once, selections made anew on drift, and such that are
//! made anew at every step, step by step against `full`.

use anyhow::{Result, ensure};
use clap::Args;
use heterokv_eval::{SideBySide, Steps};
use heterokv_model::Model;

use super::grid::{Entry, Fit, Standing};
use super::quality::NUM_STEPS;
use super::{CONTEXTS, Part, Suite};
use crate::args::at_least_one;
use crate::bars::{Bar, Limit, sheet};
use crate::outcome::Table;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// First token of the first chapter's passage that is said once more.
const SAID_FIRST: usize = 500;

/// Columns of the table.
const COLUMNS: [&str; 12] = [
    "context",
    "behind the change",
    "selection",
    "cache",
    "ratio",
    "KL before",
    "KL at first",
    "KL later",
    "top-1 later",
    "made anew before",
    "made anew behind",
    "tok/s",
];

/// The caches of --drift, and what counts as recovered.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Drift")]
pub(super) struct DriftArgs {
    /// The chapters of the text, by their numbers: the context ends with the second, and the first comes back
    #[arg(long, value_name = "A,B", default_value = "16,32", value_parser = two_numbers)]
    chapters: Chapters,
    /// The cache whose selection is never made anew
    #[arg(long, value_name = "SPEC", default_value = "heterocache:45%,tau=0.001")]
    frozen: String,
    /// A cache whose selection is made anew on drift; may be repeated
    #[arg(long, value_name = "SPEC", default_values = ["heterocache:45%", "heterocache:45%,refresh=sync"])]
    refreshed: Vec<String>,
    /// The cache whose selection is made anew at every step: what can be recovered
    #[arg(
        long,
        value_name = "SPEC",
        default_value = "heterocache:45%,every=drift:1,tau=1,refresh=sync"
    )]
    fresh: String,
    /// Steps behind the change within which --refreshed has to recover; `later` are those that follow
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = at_least_one)]
    by: usize,
    /// Recovered is what later has at most so many times the KL of --fresh
    #[arg(long, value_name = "TIMES", default_value_t = 1.1, value_parser = times)]
    within: f64,
    /// Lost is what later has at least so many times the KL of --fresh, as --frozen must where the first chapter is said once
    /// more
    #[arg(long, value_name = "TIMES", default_value_t = 1.25, value_parser = times)]
    lost: f64,
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

/// How the first chapter comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    GoesOn,
    IsSaidOnceMore,
}

impl Return {
    fn words(self) -> &'static str {
        match self {
            Self::GoesOn => "goes on",
            Self::IsSaidOnceMore => "is said once more",
        }
    }
}

/// What is fed behind a context, of the first chapter in the end.
struct Turn {
    first_chapter: Return,
    context: Vec<u32>,
    /// One more than there are steps.
    tokens: Vec<u32>,
    /// Steps of the second chapter.
    change: usize,
}

/// A cache behind a context, step by step.
struct Track {
    context: usize,
    first_chapter: Return,
    selects: Selects,
    name: String,
    ratio: f64,
    steps: Steps,
    change: usize,
    seconds: Samples,
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
    let num_behind = num_steps - num_steps / 2;
    ensure!(
        terms.by < num_behind,
        "there are {num_behind} steps behind the change; give --by fewer"
    );
    let mut tracks = Vec::new();
    for context in suite.contexts(&CONTEXTS, &[1400]) {
        let half = context / 2;
        let chapters = suite.opened.chapters(terms.chapters, half + num_steps / 2 + 1)?;
        for turn in turns(&chapters, half, num_steps)? {
            suite.say(&format!(
                "drift: {context} tokens, the first chapter {}",
                turn.first_chapter.words()
            ));
            tracks.extend(measure(&model, &turn, &entries)?);
        }
    }
    let bars = bars(&tracks, &terms);
    let is_held = !suite.arguments.check || bars.iter().all(Bar::is_held);
    let title = format!(
        "Chapters {} and {} on {}: KL(full || cache) before the change, in {} steps behind it, and later",
        terms.chapters[0], terms.chapters[1], suite.opened.name, terms.by
    );
    let tables = vec![
        Table::new("evict-drift", table(title, &tracks, terms.by)),
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
            by: 8,
            within: 1.1,
            lost: 1.25,
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
    let turn = |first_chapter, behind: &[u32]| Turn {
        first_chapter,
        context: context.clone(),
        tokens: [&second[half..half + change], behind].concat(),
        change,
    };
    let goes_on = &first[half..half + num_steps - change + 1];
    Ok([turn(Return::GoesOn, goes_on), turn(Return::IsSaidOnceMore, &first[said])])
}

/// Puts the turn to `full` and to every cache, side by side.
fn measure(model: &Model, turn: &Turn, entries: &[(Selects, Entry)]) -> Result<Vec<Track>> {
    let candidates = entries.iter().filter_map(|(_, entry)| entry.candidate());
    let configs: Vec<_> = candidates.map(|candidate| candidate.config.clone()).collect();
    let mut caches = SideBySide::behind(model, &turn.context, &configs, None)?;
    let mut tracks: Vec<Track> = entries
        .iter()
        .map(|(selects, entry)| Track {
            context: turn.context.len(),
            first_chapter: turn.first_chapter,
            selects: *selects,
            name: entry.name.clone(),
            ratio: 0.0,
            steps: Steps::default(),
            change: turn.change,
            seconds: Samples::default(),
            num_refreshes: [0; 2],
        })
        .collect();
    for (step, pair) in turn.tokens.windows(2).enumerate() {
        let [fed, next] = *pair else { continue };
        caches.feed(fed, &mut |said| {
            let track = &mut tracks[said.index];
            track.seconds.push(said.time.as_secs_f64());
            track.steps.push(said.full, &said.own, next)?;
            track.ratio = track.ratio.max(said.cache.ratio());
            let num_refreshes = said.cache.num_refreshes();
            let before: u64 = track.num_refreshes.iter().sum();
            track.num_refreshes[usize::from(step >= turn.change)] += num_refreshes - before;
            Ok(())
        })?;
    }
    Ok(tracks)
}

impl Track {
    /// Mean KL of the steps before the change.
    fn before(&self) -> f64 {
        mean(&self.steps.kl[..self.change])
    }

    /// Mean KL of the first steps behind the change.
    fn at_first(&self, by: usize) -> f64 {
        mean(&self.steps.kl[self.change..][..by])
    }

    /// Mean KL of those that follow.
    fn later(&self, by: usize) -> f64 {
        mean(&self.steps.kl[self.change + by..])
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Who selects anew on drift recovers what can be; who does not loses where what it has forgotten is said once more. Otherwise
/// it is shown beside the others, and holds no bar.
fn bars(tracks: &[Track], terms: &DriftArgs) -> Vec<Bar> {
    let bar = |track: &Track| {
        let is_same_turn = |other: &&Track| {
            (other.context, other.first_chapter) == (track.context, track.first_chapter)
        };
        let fresh = tracks.iter().filter(is_same_turn).find(|t| t.selects == Selects::Always)?;
        let is_said = track.first_chapter == Return::IsSaidOnceMore;
        let (what, limit) = match track.selects {
            Selects::OnDrift => {
                ("KL later over that of a fresh selection", Limit::AtMost(terms.within))
            }
            Selects::Once if is_said => ("the loss without", Limit::AtLeast(terms.lost)),
            Selects::Once | Selects::Always => return None,
        };
        let words = track.first_chapter.words();
        Some(Bar {
            what: format!("{what}, {} tokens, the first {words}", track.context),
            by: track.name.clone(),
            reached: track.later(terms.by) / fresh.later(terms.by),
            limit,
        })
    };
    tracks.iter().filter_map(bar).collect()
}

fn table(title: String, tracks: &[Track], by: usize) -> Sheet {
    let mut sheet = Sheet::new(title, &COLUMNS);
    for track in tracks {
        let top1 = &track.steps.top1[track.change + by..];
        let top1: Vec<f64> = top1.iter().map(|&is_same| f64::from(is_same)).collect();
        sheet.push(vec![
            Cell::Number(track.context as f64, 0),
            Cell::text(format!("the first {}", track.first_chapter.words())),
            Cell::text(track.selects.words()),
            Cell::text(&track.name),
            Cell::Number(100.0 * track.ratio, 1),
            Cell::Scientific(track.before()),
            Cell::Scientific(track.at_first(by)),
            Cell::Scientific(track.later(by)),
            Cell::Number(100.0 * mean(&top1), 1),
            Cell::Number(track.num_refreshes[0] as f64, 0),
            Cell::Number(track.num_refreshes[1] as f64, 0),
            Cell::Number(1.0 / track.seconds.median(), 1),
        ]);
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
    fn who_recovers_and_who_loses_is_told_by_the_later_steps() {
        let track = |selects, first_chapter, at_first: f64, later: f64| Track {
            context: 4096,
            first_chapter,
            selects,
            name: "x".to_owned(),
            ratio: 0.5,
            steps: Steps {
                kl: [vec![0.5; 4], vec![at_first; 8], vec![later; 20]].concat(),
                ..Steps::default()
            },
            change: 4,
            seconds: Samples::default(),
            num_refreshes: [0; 2],
        };
        let terms = DriftArgs::small();
        let held = |selects, first_chapter, later| -> Vec<bool> {
            let own = track(selects, first_chapter, 9.0, later);
            // Of the other turn, which is nobody's measure here.
            let other = track(Selects::Always, Return::GoesOn, 0.0, 1000.0);
            let fresh = track(Selects::Always, Return::IsSaidOnceMore, 0.01, 1.0);
            bars(&[own, other, fresh], &terms).iter().map(Bar::is_held).collect()
        };
        let said = Return::IsSaidOnceMore;
        assert_eq!(
            held(Selects::OnDrift, said, 1.09),
            [true],
            "what is lost at first is no matter"
        );
        assert_eq!(held(Selects::OnDrift, said, 1.11), [false]);
        assert_eq!(held(Selects::OnDrift, said, f64::NAN), [false]);
        assert_eq!(held(Selects::Once, said, 1.26), [true]);
        assert_eq!(held(Selects::Once, said, 1.24), [false], "a loss that cannot be seen");
        assert!(held(Selects::Once, Return::GoesOn, 1.0).is_empty(), "there is none to be shown");
    }
}
