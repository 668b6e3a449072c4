//! The bars that the table is held to: who has to be ahead of every cache that forgets for good, and by how much.

use super::Part;
use super::grid::{Entry, Loss, Standing};
use crate::bars::{Bar, Limit, sheet};
use crate::outcome::{Reach, Table};

/// Who has to be ahead, and at which ratios.
const AHEAD: [(&str, &[f64]); 3] =
    [("hca", &[25.0, 12.5]), ("hca-rescore", &[25.0, 12.5]), ("heterocache", &[50.0])];

/// Who has to be far ahead where something is said once more.
const FAR_AHEAD: [&str; 2] = ["hca", "hca-rescore"];

/// The others' KL over theirs that is far ahead.
const FAR: f64 = 2.0;

/// Who has to be faster than `full`, at which ratio and context.
const FASTER: (&str, f64, usize) = ("heterocache", 50.0, 7900);

/// KL(full ‖ cache) in nats, means over all steps, and speed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// On the text that follows.
    pub(super) plain: f64,
    /// On a passage of the context once more.
    pub(super) recall: f64,
    /// Tokens per second over those of `full`.
    pub(super) of_full: f64,
}

/// All comparisons, and of each that has to be ahead the nearest, which the page shows.
pub(super) fn part(
    entries: &[Entry],
    contexts: &[usize],
    measured: &dyn Fn(&Entry, usize) -> Option<Measured>,
) -> Part {
    let mut all = bars(entries, contexts, measured);
    all.extend(speed(entries, contexts, measured));
    let is_held = !all.is_empty() && all.iter().all(Bar::is_held);
    let nearest = sheet(
        "The nearest cache that forgets for good, its KL over ours; and speed",
        &nearest(&all),
    );
    let all = sheet("Every cache that forgets for good, its KL over ours; and speed", &all);
    let tables = vec![
        Table::new("evict-bars", all).reaching(Reach::Terminal),
        Table::new("evict-bars-nearest", nearest),
    ];
    Part { name: "bars", tables, is_held }
}

/// The bar of [`FASTER`], where its context is measured.
fn speed(
    entries: &[Entry],
    contexts: &[usize],
    measured: &dyn Fn(&Entry, usize) -> Option<Measured>,
) -> Option<Bar> {
    let (name, ratio, context) = FASTER;
    let entry = find(entries, |entry| is(entry, name, ratio)).next();
    let of_full = entry.and_then(|entry| measured(entry, context)).map(|m| m.of_full);
    contexts.contains(&context).then(|| Bar {
        what: format!("tokens per second over those of full, {context} tokens"),
        by: entry.map_or("not measured".to_owned(), |entry| entry.name.clone()),
        reached: of_full.unwrap_or(f64::NAN),
        limit: Limit::AtLeast(1.0),
    })
}

/// A bar for each of ours, each ratio and context, each measure and each other cache that can keep that ratio. What was
/// not measured holds none.
fn bars(
    entries: &[Entry],
    contexts: &[usize],
    measured: &dyn Fn(&Entry, usize) -> Option<Measured>,
) -> Vec<Bar> {
    let mut bars = Vec::new();
    for &context in contexts {
        for (name, ratios) in AHEAD {
            for &ratio in ratios {
                let ours = find(entries, |entry| is(entry, name, ratio)).next();
                let own = ours.and_then(|ours| measured(ours, context));
                let is_rival = |entry: &Entry| {
                    entry.preset.is_some_and(|preset| preset.loss == Loss::Tokens)
                        && entry.ratio == Some(ratio)
                        && !matches!(entry.standing, Standing::Unreachable { .. })
                };
                for rival in find(entries, is_rival) {
                    let other = measured(rival, context);
                    let recall_needed = if FAR_AHEAD.contains(&name) { FAR } else { 1.0 };
                    for (measure, needed, of) in [
                        ("KL", 1.0, (|l: Measured| l.plain) as fn(Measured) -> f64),
                        ("recall KL", recall_needed, |l| l.recall),
                    ] {
                        let [own, other] = [own, other].map(|measured| measured.map(of));
                        let shown = |kl: Option<f64>| {
                            kl.map_or("not measured".to_owned(), |kl| format!("{kl:.5}"))
                        };
                        let [own, other] =
                            [own, other].map(|kl| (kl.unwrap_or(f64::NAN), shown(kl)));
                        bars.push(Bar {
                            what: format!("{measure} of {name}:{ratio}% at {context} tokens"),
                            by: format!("{}: {} against {}", rival.name, other.1, own.1),
                            reached: other.0 / own.0,
                            limit: Limit::AtLeast(needed),
                        });
                    }
                }
            }
        }
    }
    bars
}

fn find(entries: &[Entry], is_it: impl Fn(&Entry) -> bool) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(move |entry| is_it(entry))
}

fn is(entry: &Entry, name: &str, ratio: f64) -> bool {
    entry.preset.is_some_and(|preset| preset.name == name) && entry.ratio == Some(ratio)
}

/// Of each figure the bar with the least margin; what was not measured has none.
fn nearest(bars: &[Bar]) -> Vec<Bar> {
    let mut nearest: Vec<Bar> = Vec::new();
    let margin = |bar: &Bar| if bar.reached.is_nan() { f64::NEG_INFINITY } else { bar.reached };
    for bar in bars {
        match nearest.iter_mut().find(|other| other.what == bar.what) {
            None => nearest.push(bar.clone()),
            Some(other) if margin(bar) < margin(other) => *other = bar.clone(),
            Some(_) => {}
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::super::grid::PRESETS;
    use super::*;

    /// Presets at the ratios of the bars, all of which could be measured but those named.
    fn entries(unreachable: &str) -> Vec<Entry> {
        let mut entries = Vec::new();
        for preset in &PRESETS {
            for ratio in [50.0, 25.0, 12.5] {
                let name = format!("{}:{ratio}%", preset.name);
                let standing = match name == unreachable {
                    true => Standing::Unreachable { least: 99.0 },
                    false => Standing::Refused { word: "", reason: String::new() },
                };
                let ratio = (preset.loss != Loss::OwnShare).then_some(ratio);
                entries.push(Entry { name, preset: Some(preset), ratio, standing });
            }
        }
        entries
    }

    fn made_up(entry: &Entry, _: usize) -> Option<Measured> {
        let is_ours = entry.preset.is_some_and(|preset| preset.loss == Loss::Nothing);
        Some(if is_ours {
            Measured { plain: 0.001, recall: 0.002, of_full: 1.1 }
        } else {
            Measured { plain: 0.01, recall: 0.5, of_full: 0.9 }
        })
    }

    fn is_held(entries: &[Entry], measured: &dyn Fn(&Entry, usize) -> Option<Measured>) -> bool {
        part(entries, &[4096, 7900], measured).is_held
    }

    #[test]
    fn made_up_rows_hold_and_every_fault_of_one_is_seen() {
        let entries = entries("");
        assert!(is_held(&entries, &made_up));
        let num_rivals = PRESETS.iter().filter(|preset| preset.loss == Loss::Tokens).count();
        assert_eq!(bars(&entries, &[4096, 7900], &made_up).len(), 2 * 5 * 2 * num_rivals);

        type Fault = (&'static str, usize, fn(Measured) -> Option<Measured>);
        let faults: [Fault; 8] = [
            // One other is ahead in one measure, at one context.
            ("h2o:25%", 7900, |l| Some(Measured { plain: 0.0009, ..l })),
            ("tova:12.5%", 4096, |l| Some(Measured { recall: 0.0019, ..l })),
            ("adakv:50%", 4096, |l| Some(Measured { recall: 0.0019, ..l })),
            // Ahead of it, but not far.
            ("knorm:25%", 4096, |l| Some(Measured { recall: 0.003, ..l })),
            // Not a number, not measured, ours and another's.
            ("hca:12.5%", 7900, |l| Some(Measured { plain: f64::NAN, ..l })),
            ("heterocache:50%", 4096, |_| None),
            ("snapkv:25%", 4096, |_| None),
            // As slow as full, all but.
            ("heterocache:50%", 7900, |l| Some(Measured { of_full: 0.99, ..l })),
        ];
        for (name, at, fault) in faults {
            let measured = |entry: &Entry, context: usize| {
                let sound = made_up(entry, context)?;
                if entry.name == name && context == at { fault(sound) } else { Some(sound) }
            };
            assert!(!is_held(&entries, &measured), "{name}");
            let mut missed: Vec<Bar> = bars(&entries, &[4096, 7900], &measured);
            missed.extend(speed(&entries, &[4096, 7900], &measured));
            let missed: Vec<&Bar> = missed.iter().filter(|bar| !bar.is_held()).collect();
            assert!(!missed.is_empty());
            for bar in missed {
                let both = format!("{} {}", bar.what, bar.by);
                assert!(both.contains(name) && both.contains(&at.to_string()), "{both}");
            }
        }
    }

    #[test]
    fn what_no_bar_is_about_counts_for_none() {
        // Far ahead is asked of coded keys alone; a ratio that is found on the text is nobody's rival.
        let measured = |entry: &Entry, context: usize| {
            let sound = made_up(entry, context)?;
            Some(match entry.name.as_str() {
                "h2o:50%" => Measured { recall: 0.003, ..sound },
                name if name.starts_with("corm") => Measured { plain: 0.0, recall: 0.0, ..sound },
                _ => sound,
            })
        };
        assert!(is_held(&entries(""), &measured));
        let worse = |entry: &Entry, context: usize| {
            let sound = made_up(entry, context)?;
            Some(if entry.name == "h2o:25%" {
                Measured { plain: 0.0, recall: 0.0, ..sound }
            } else {
                sound
            })
        };
        assert!(!is_held(&entries(""), &worse));
        assert!(is_held(&entries("h2o:25%"), &worse), "it cannot keep that ratio");
        // Nothing to compare is nothing held.
        assert!(!is_held(&[], &made_up));
        assert!(!is_held(&entries("heterocache:50%"), &|entry, context| {
            if entry.name == "heterocache:50%" { None } else { made_up(entry, context) }
        }));
    }

    #[test]
    fn the_page_shows_the_nearest() {
        let measured = |entry: &Entry, context: usize| {
            let sound = made_up(entry, context)?;
            Some(if entry.name == "keydiff:25%" {
                Measured { plain: 0.004, ..sound }
            } else {
                sound
            })
        };
        let nearest = nearest(&bars(&entries(""), &[4096], &measured));
        assert_eq!(nearest.len(), 5 * 2);
        let bar = &nearest[0];
        assert!(bar.what.starts_with("KL of hca:25%") && bar.by.starts_with("keydiff"), "{bar:?}");
        assert!((bar.reached - 4.0).abs() < 1e-9);
    }
}
