//! Selection on devices, held to what a selection is, and to the selector of the host.

use heterokv_attn::HeadShape;
use heterokv_attn::device::{DeviceError, ScoreRow, Select, SelectScratch};
use heterokv_evict::{Rule, SelectScratch as HostScratch, Selector, TokenSet, Union};
use heterokv_testkit::Inputs;

use crate::devices::places_or_skip;
use crate::sites::{Memories, Output, Site, upload};

/// How far masses may be off: exponentials and sums of a device are of f32.
const SLACK: f64 = 2e-4;

struct Case {
    name: &'static str,
    shape: HeadShape,
    /// Coded tokens of each KV head.
    num_tokens: Vec<usize>,
    /// Deviation of the scores: the larger, the fewer tokens hold the mass.
    spread: f32,
    /// Scores are multiples of this; 0 leaves them as they are.
    grain: f32,
    /// The log-sum-exp of the resident tokens, relative to that of one token of score 0.
    resident: f32,
    selector: Selector,
}

fn cases() -> Vec<Case> {
    let shape = |qo, kv| HeadShape::new(qo, kv, 64).unwrap();
    let selector = |rule, min, max| Selector::new(rule, min, max).unwrap();
    let none = f32::NEG_INFINITY;
    let top_p = |p| selector(Rule::TopP(p), 0, usize::MAX);
    let case = |name, shape, num_tokens: &[usize], spread, grain, resident, selector| Case {
        name,
        shape,
        num_tokens: num_tokens.to_vec(),
        spread,
        grain,
        resident,
        selector,
    };
    vec![
        case("one token", shape(1, 1), &[1], 1.0, 0.0, none, top_p(0.9)),
        case("SmolLM2's heads", shape(9, 3), &[4095, 4096, 4097], 2.0, 0.0, 4.0, top_p(0.95)),
        case("flat", shape(4, 2), &[5000, 300], 0.05, 0.0, none, top_p(0.5)),
        case("peaked", shape(4, 1), &[9000], 8.0, 0.0, none, top_p(0.99)),
        case("ties", shape(2, 1), &[10_000], 1.0, 0.5, none, top_p(0.7)),
        case("all equal", shape(3, 1), &[8200], 0.0, 0.0, none, top_p(0.25)),
        case("resident is enough", shape(2, 2), &[500, 700], 1.0, 0.0, 30.0, top_p(0.9)),
        case("a floor", shape(2, 1), &[6000], 6.0, 0.0, 30.0, selector(Rule::TopP(0.9), 256, 4096)),
        case(
            "a cap",
            shape(6, 2),
            &[6000, 100],
            0.1,
            0.0,
            none,
            selector(Rule::TopP(0.9), 16, 128),
        ),
        case(
            "a cap among ties",
            shape(1, 1),
            &[9000],
            1.0,
            1.0,
            none,
            selector(Rule::TopP(0.9), 0, 777),
        ),
        case(
            "top-k",
            shape(4, 2),
            &[5000, 20],
            1.0,
            0.0,
            2.0,
            selector(Rule::TopK(40), 0, usize::MAX),
        ),
        case("all", shape(2, 1), &[4500], 3.0, 0.0, 1.0, selector(Rule::All, 0, usize::MAX)),
        case("ragged, one empty", shape(4, 2), &[0, 4200], 2.0, 0.0, 3.0, top_p(0.9)),
    ]
}

#[test]
fn select() {
    select_on(places_or_skip());
}

pub(crate) fn select_on<S: Site>(sites: &[S]) {
    for (number, case) in cases().iter().enumerate() {
        for union in [Union::Group, Union::Head] {
            let mut inputs = Inputs::new(1200 + number as u64);
            let group_size = case.shape.group_size();
            let (mut scores, mut rows) = (Vec::new(), Vec::new());
            for head in 0..case.shape.num_qo_heads {
                let num_tokens = case.num_tokens[head / group_size];
                rows.push(ScoreRow { start: scores.len() as u32, num_tokens: num_tokens as u32 });
                let grain = |x: f32| {
                    if case.grain > 0.0 { (x / case.grain).round() * case.grain } else { x }
                };
                let of_head = inputs.gaussian_rows(1, num_tokens, case.spread);
                scores.extend(of_head.into_iter().map(grain));
            }
            let resident: Vec<f32> =
                (0..case.shape.num_qo_heads).map(|_| case.resident + 0.1 * inputs.unit()).collect();
            for site in sites {
                let label = format!("{}, union by {union}, on {}", case.name, site.name());
                let found = on_site(site, case, union, &rows, &scores, &resident);
                check(case, union, &rows, &scores, &resident, &found, &label);
            }
        }
    }
}

/// What a device takes: positions of each KV head, and scores of each query head at them.
struct Found {
    positions: Vec<Vec<u32>>,
    scores: Vec<Vec<f32>>,
}

fn on_site<S: Site>(
    site: &S,
    case: &Case,
    union: Union,
    rows: &[ScoreRow],
    scores: &[f32],
    resident: &[f32],
) -> Found {
    let memories = site.memories();
    let HeadShape { num_qo_heads, num_kv_heads, .. } = case.shape;
    let max_tokens = case.num_tokens.iter().copied().max().unwrap();
    let zeros = |_: &'static str, num_bytes: u64| -> Result<_, DeviceError> {
        Ok(memories.upload_words(&vec![0; num_bytes as usize / 4]))
    };
    let scratch = SelectScratch::of(&case.shape, max_tokens, zeros).unwrap();
    let [on_rows, on_scores, on_resident] =
        [upload(memories, rows), upload(memories, scores), upload(memories, resident)];
    let num_taken = Output::new(memories, num_kv_heads);
    let positions = Output::new(memories, num_kv_heads * max_tokens);
    let taken_scores = Output::new(memories, num_qo_heads * max_tokens);
    let select = Select {
        shape: case.shape,
        max_tokens,
        enough: case.selector.enough().unwrap(),
        union,
        rows: (&on_rows).into(),
        scores: (&on_scores).into(),
        resident: (&on_resident).into(),
        capacity: max_tokens,
        num_taken: num_taken.bound(),
        positions: positions.bound(),
        taken_scores: taken_scores.bound(),
    };
    // Twice: what a selection leaves in the scratch must not reach the next one.
    for _ in 0..2 {
        site.run(&select.launches(&scratch).unwrap());
    }
    let words = |output: &Output<S::Memories>| -> Vec<u32> {
        output.read(memories, site.name()).into_iter().map(f32::to_bits).collect()
    };
    let counts: Vec<usize> = words(&num_taken).iter().map(|&count| count as usize).collect();
    assert!(
        counts.iter().all(|&count| count <= max_tokens),
        "{}: {counts:?} of {max_tokens} tokens, on {}",
        case.name,
        site.name()
    );
    let positions = words(&positions);
    let of_kv = |kv_head: usize| positions[kv_head * max_tokens..][..counts[kv_head]].to_vec();
    let taken = taken_scores.read(memories, site.name());
    let of_head =
        |head: usize| taken[head * max_tokens..][..counts[head / case.shape.group_size()]].to_vec();
    Found {
        positions: (0..num_kv_heads).map(of_kv).collect(),
        scores: (0..num_qo_heads).map(of_head).collect(),
    }
}

/// What a selection is: the heaviest tokens of each head, enough and no more; and what the host takes, up to tokens of
/// almost the last weight.
fn check(
    case: &Case,
    union: Union,
    rows: &[ScoreRow],
    scores: &[f32],
    resident: &[f32],
    found: &Found,
    label: &str,
) {
    let group_size = case.shape.group_size();
    let enough = case.selector.enough().unwrap();
    for kv_head in 0..case.shape.num_kv_heads {
        let positions = &found.positions[kv_head];
        assert!(positions.is_sorted_by(|a, b| a < b), "{label}: positions rise");
        let num_tokens = rows[kv_head * group_size].num_tokens;
        assert!(positions.iter().all(|&t| t < num_tokens), "{label}: {num_tokens} tokens");
        let mut is_needed = vec![false; positions.len()];
        for head in kv_head * group_size..(kv_head + 1) * group_size {
            let row = &scores[rows[head].start as usize..][..rows[head].num_tokens as usize];
            let total: f64 = row.iter().map(|&s| f64::from(s).exp()).sum::<f64>()
                + f64::from(resident[head]).exp();
            let weight = |t: usize| f64::from(row[t]).exp() / total;
            let resident_mass = f64::from(resident[head]).exp() / total;
            let taken = host(case, row, resident_mass, total);
            let of_head = &found.scores[head];
            for (i, &position) in positions.iter().enumerate() {
                let expected = row[position as usize];
                if union == Union::Group {
                    assert_eq!(of_head[i], expected, "{label}: the score of a token");
                    is_needed[i] |= taken.contains(position as usize);
                } else if of_head[i] != f32::NEG_INFINITY {
                    assert_eq!(of_head[i], expected, "{label}: the score of a token");
                    is_needed[i] = true;
                }
            }
            if union == Union::Group {
                let has = |t: &u32| positions.binary_search(t).is_ok();
                let lost = taken.positions().iter().filter(|t| !has(t)).count();
                assert!(
                    lost <= 2 + positions.len() / 500,
                    "{label}: {lost} tokens of head {head} are lost"
                );
                continue;
            }
            let own: Vec<usize> = (0..positions.len())
                .filter(|&i| of_head[i] != f32::NEG_INFINITY)
                .map(|i| positions[i] as usize)
                .collect();
            let mass = resident_mass + own.iter().map(|&t| weight(t)).sum::<f64>();
            let wanted = f64::from(enough.mass).min(1.0);
            let least = enough.at_least.min(row.len());
            let is_enough = mass >= wanted - SLACK && own.len() >= least;
            assert!(
                is_enough || own.len() == enough.at_most.min(row.len()),
                "{label}: {mass} of {wanted}"
            );
            assert!(own.len() <= enough.at_most, "{label}: {} tokens", own.len());
            let lightest = own.iter().map(|&t| weight(t)).fold(f64::INFINITY, f64::min);
            if own.len() > least && !own.is_empty() {
                assert!(mass - lightest <= wanted + SLACK, "{label}: {mass} without {lightest}");
            }
            let mut is_own = vec![false; row.len()];
            own.iter().for_each(|&t| is_own[t] = true);
            let heaviest = (0..row.len()).filter(|&t| !is_own[t]).map(weight).fold(0.0, f64::max);
            assert!(
                heaviest <= lightest * (1.0 + 1e-5),
                "{label}: {heaviest} left, {lightest} taken"
            );
            // Among equals the first ones.
            let last_own = own.iter().filter(|&&t| weight(t) == lightest).max();
            let first_left = (0..row.len()).find(|&t| !is_own[t] && weight(t) == lightest);
            if let (Some(last), Some(first)) = (last_own, first_left) {
                assert!(*last < first, "{label}: {first} is left and {last} taken");
            }
            let count = taken.count();
            let differ = own.len().abs_diff(count);
            assert!(
                differ <= 2 + count / 500,
                "{label}: {} tokens, on the host {count}",
                own.len()
            );
        }
        let idle = is_needed.iter().filter(|needed| !**needed).count();
        assert!(idle <= 2 + positions.len() / 500, "{label}: {idle} tokens that no head takes");
    }
}

fn host(case: &Case, row: &[f32], resident_mass: f64, total: f64) -> TokenSet {
    let weights: Vec<f32> = row.iter().map(|&s| (f64::from(s).exp() / total) as f32).collect();
    let mut taken = TokenSet::default();
    case.selector.select(&weights, resident_mass, &mut HostScratch::default(), &mut taken).unwrap();
    taken
}

/// The check can fail: of a right selection a token is dropped, one is added, and the last is exchanged.
#[test]
fn a_wrong_selection_is_seen() {
    let Some(site) = places_or_skip().first() else { return };
    let mut inputs = Inputs::new(1300);
    let num_tokens = 5000;
    let shape = HeadShape::new(1, 1, 64).unwrap();
    let case = Case { shape, num_tokens: vec![num_tokens], ..cases().swap_remove(2) };
    let rows = [ScoreRow { start: 0, num_tokens: num_tokens as u32 }];
    let scores = inputs.gaussian_rows(1, num_tokens, 2.0);
    let resident = [0.0];
    let right = on_site(site, &case, Union::Head, &rows, &scores, &resident);
    let passes = |positions: &[u32]| {
        let found = Found {
            positions: vec![positions.to_vec()],
            scores: vec![positions.iter().map(|&t| scores[t as usize]).collect()],
        };
        let checked = std::panic::catch_unwind(|| {
            check(&case, Union::Head, &rows, &scores, &resident, &found, "wrong on purpose");
        });
        checked.is_ok()
    };
    let positions = &right.positions[0];
    assert!(passes(positions));
    let heaviest = (0..positions.len())
        .max_by(|&a, &b| scores[positions[a] as usize].total_cmp(&scores[positions[b] as usize]))
        .unwrap();
    let mut dropped = positions.clone();
    dropped.remove(heaviest);
    assert!(!passes(&dropped), "the heaviest token is left out");
    let lightest =
        (0..num_tokens as u32).min_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]));
    let mut added = positions.clone();
    added.push(lightest.unwrap());
    added.sort_unstable();
    assert!(!passes(&added), "the lightest token is taken");
    let mut moved = positions.clone();
    moved.swap(0, 1);
    assert!(!passes(&moved), "positions do not rise");
}
