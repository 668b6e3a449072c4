//! Rows selected by position, gathered from pages in RAM and summed under their weights, beside a plain loop that only
//! reads them.

use std::time::Instant;

use anyhow::{Context, Result};
use heterokv_attn::{AttnState, GroupSum, HostScores};
use heterokv_offload::{DiskOptions, Sequence, Store, StoreOptions, StoreShape};
use heterokv_quant::{Level, RowFormat, RowLayout};
use heterokv_testkit::Inputs;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::known::{Known, Scores};
use super::plain::Plain;
use super::{HEAD_DIM, Run};
use crate::bars::{Bar, Limit};
use crate::interleave::interleaved;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// Query heads of a KV head.
const GROUP_SIZE: usize = 3;

/// Rows of one call, as in a step of the cache.
const CALL_ROWS: usize = 512;

/// Selections that take turns, so that none finds its rows in the caches.
const NUM_SELECTIONS: usize = 4;

/// Of the rate of the plain loop.
const BAR: f64 = 0.7;

/// Shares of the rows that are selected.
const SHARES: [f64; 3] = [0.02, 0.1, 1.0];

/// Rows of the formats that are measured; those with keys are re-scored.
fn layouts() -> [RowLayout; 3] {
    let layout = |key, value| RowLayout { key, value, head_dim: HEAD_DIM };
    [
        layout(None, RowFormat::Int8),
        layout(None, RowFormat::F16),
        layout(Some(RowFormat::Int8), RowFormat::Int8),
    ]
}

/// What was measured of one format, share and store.
pub(super) struct Gathered {
    pub(super) name: String,
    pub(super) share: f64,
    pub(super) row_bytes: usize,
    /// Nanoseconds per row.
    pub(super) plain: Samples,
    pub(super) shuffled: Samples,
    pub(super) ours: Samples,
}

impl Gathered {
    /// Our rate over that of a yardstick, round by round.
    fn over(&self, yardstick: &Samples) -> f64 {
        let pairs = yardstick.iter().zip(self.ours.iter());
        pairs.map(|(yardstick, ours)| yardstick / ours).collect::<Samples>().median()
    }

    /// Scattered rows are held against a plain loop over the same list. Where all are selected that loop reads in order,
    /// and the yardstick is the rate of rows in random order.
    fn bar(&self) -> Bar {
        let (by, yardstick) = match self.share < 1.0 {
            true => ("plain loop over the same rows", &self.plain),
            false => ("rows in random order", &self.shuffled),
        };
        Bar {
            what: format!("{}, {} % selected", self.name, 100.0 * self.share),
            by: by.to_owned(),
            reached: self.over(yardstick),
            limit: Limit::AtLeast(BAR),
        }
    }
}

/// All bars of it.
pub(super) fn bars(all: &[Gathered]) -> Vec<Bar> {
    all.iter().map(Gathered::bar).collect()
}

/// A filled store, and the same rows in one buffer.
struct Stage {
    known: Known,
    plain: Plain,
    stores: Vec<(&'static str, Sequence)>,
    num_heads: usize,
    num_rows: usize,
    level: Level,
}

/// What each head of a step reads, and under which scores.
#[derive(Default)]
struct Selection {
    /// By head.
    positions: Vec<Vec<u32>>,
    /// The same in random order.
    shuffled: Vec<Vec<u32>>,
    weighed: Vec<Weighed>,
}

/// What takes a turn.
#[derive(Clone, Copy)]
enum Candidate {
    Plain,
    Shuffled,
    Store(usize),
}

enum Weighed {
    /// `[GROUP_SIZE, positions]`.
    Coded(Vec<f32>),
    /// Queries `[GROUP_SIZE, head_dim]`.
    Exact(Vec<f32>),
}

impl Scores for (&Weighed, usize) {
    fn score(&self, query_head: usize, i: usize, key: &[f32]) -> f64 {
        match self.0 {
            Weighed::Coded(scores) => f64::from(scores[query_head * self.1 + i]),
            Weighed::Exact(queries) => {
                let query = &queries[query_head * HEAD_DIM..][..HEAD_DIM];
                query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
            }
        }
    }
}

/// Measures every format and share.
///
/// # Errors
/// A wrong answer, or what the store fails with.
pub(super) fn measure(run: &Run<'_>) -> Result<Vec<Gathered>> {
    let mut all = Vec::new();
    for layout in layouts() {
        let stage = Stage::new(layout, run)?;
        for share in SHARES {
            all.extend(stage.measure(share, run.num_rounds)?);
        }
    }
    Ok(all)
}

impl Stage {
    fn new(layout: RowLayout, run: &Run<'_>) -> Result<Self> {
        let known = Known::new(layout)?;
        let num_rows = run.num_rows;
        let num_heads = (run.memory_bytes / (num_rows * layout.row_bytes())).max(1);
        let page_size = StoreShape::page_size_of(&layout);
        let shape = StoreShape { num_layers: 1, num_kv_heads: num_heads, page_size, layout };
        let plain = Plain::new(&known, &shape, num_heads, num_rows);
        let disk = DiskOptions::new(run.subfolder("ram")?, "bench");
        // So much that no page is written.
        let ram_budget_bytes = 4 * shape.bytes(num_rows);
        let with_disk = Store::open(StoreOptions { shape, ram_budget_bytes, disk: Some(disk) })?;
        let mut stores = Vec::new();
        for (name, store) in [("RAM alone", Store::in_ram(shape)?), ("over a disk", with_disk)] {
            let mut sequence = store.sequence();
            known.fill(&mut sequence, num_rows)?;
            stores.push((name, sequence));
        }
        Ok(Self { known, plain, stores, num_heads, num_rows, level: Level::detect() })
    }

    fn select(&self, share: f64, inputs: &mut Inputs) -> Selection {
        let mut selection = Selection::default();
        for _ in 0..self.num_heads {
            let all = 0..self.num_rows as u32;
            let positions: Vec<u32> = all.filter(|_| f64::from(inputs.unit()) < share).collect();
            let weighed = match self.known.layout.key {
                None => Weighed::Coded(inputs.gaussian_rows(GROUP_SIZE, positions.len(), 1.0)),
                Some(_) => Weighed::Exact(inputs.gaussian_rows(GROUP_SIZE, HEAD_DIM, 0.125)),
            };
            let mut shuffled = positions.clone();
            shuffled.shuffle(&mut StdRng::seed_from_u64(inputs.bits()));
            selection.shuffled.push(shuffled);
            selection.positions.push(positions);
            selection.weighed.push(weighed);
        }
        selection
    }

    fn measure(&self, share: f64, num_rounds: usize) -> Result<Vec<Gathered>> {
        let mut inputs = Inputs::new(11);
        // All rows are one selection only.
        let num_selections = if share < 1.0 { NUM_SELECTIONS } else { 1 };
        let selections: Vec<_> =
            (0..num_selections).map(|_| self.select(share, &mut inputs)).collect();
        let stores = (0..self.stores.len()).map(Candidate::Store);
        let candidates = [Candidate::Plain, Candidate::Shuffled].into_iter().chain(stores);
        let mut candidates: Vec<_> = candidates.map(|candidate| (candidate, 0)).collect();
        let samples = interleaved(&mut candidates, num_rounds + 1, |(candidate, turn)| {
            let selection = &selections[*turn % num_selections];
            *turn += 1;
            let nanoseconds = match candidate {
                Candidate::Plain => self.read_plain(&selection.positions)?,
                Candidate::Shuffled => self.read_plain(&selection.shuffled)?,
                Candidate::Store(store) => self.gather(&self.stores[*store].1, selection)?,
            };
            let num_rows: usize = selection.positions.iter().map(Vec::len).sum();
            Ok(nanoseconds / num_rows as f64)
        })?;
        // The first round brings in what all others find.
        let mut samples =
            samples.into_iter().map(|samples| samples.iter().skip(1).collect::<Samples>());
        let plain = samples.next().context("the plain loop comes first")?;
        let shuffled = samples.next().context("and then in random order")?;
        let (layout, row_bytes) = (self.known.layout, self.known.layout.row_bytes());
        let rows = match layout.key {
            None => layout.value.to_string(),
            Some(key) => format!("{key} key, {} value", layout.value),
        };
        let of_stores = self.stores.iter().zip(samples).map(|((store, _), ours)| Gathered {
            name: format!("{rows}, {store}"),
            share,
            row_bytes,
            plain: plain.clone(),
            shuffled: shuffled.clone(),
            ours,
        });
        Ok(of_stores.collect())
    }

    fn read_plain(&self, of_heads: &[Vec<u32>]) -> Result<f64> {
        let start = Instant::now();
        let sums: Vec<u64> = of_heads
            .iter()
            .enumerate()
            .map(|(head, positions)| self.plain.read(head, positions))
            .collect();
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        for (head, (positions, sum)) in of_heads.iter().zip(sums).enumerate() {
            Plain::check(&self.known, head, positions, sum)?;
        }
        Ok(nanoseconds)
    }

    fn gather(&self, sequence: &Sequence, selection: &Selection) -> Result<f64> {
        let start = Instant::now();
        let mut states = Vec::with_capacity(self.num_heads);
        for (head, (positions, weighed)) in
            selection.positions.iter().zip(&selection.weighed).enumerate()
        {
            let mut state = AttnState::empty(GROUP_SIZE, HEAD_DIM);
            for (call, rows) in positions.chunks(CALL_ROWS).enumerate() {
                let mut sum = GroupSum::new(GROUP_SIZE, HEAD_DIM);
                let scores = match weighed {
                    Weighed::Coded(scores) => HostScores::Coded {
                        scores: &scores[call * CALL_ROWS..],
                        stride: positions.len(),
                    },
                    Weighed::Exact(queries) => HostScores::Exact { queries, taken: None },
                };
                sum.add_host(self.level, &sequence.rows(0, head), rows, scores)?;
                sum.merge_into(&mut state);
            }
            states.push(state);
        }
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        for (head, state) in states.iter().enumerate() {
            let positions = &selection.positions[head];
            let scores = (&selection.weighed[head], positions.len());
            self.known.check_sum(head, positions, &scores, state)?;
        }
        Ok(nanoseconds)
    }
}

/// The table of it.
pub(super) fn sheet(all: &[Gathered]) -> Sheet {
    let columns = [
        "rows",
        "bytes",
        "selected",
        "ns a row",
        "MAD %",
        "plain loop, ns",
        "of the plain loop",
        "random order, ns",
        "of random order",
    ];
    let title = format!(
        "Rows in RAM: gather and weighted sum for {GROUP_SIZE} query heads, and a plain loop that reads the same rows"
    );
    let mut sheet = Sheet::new(title, &columns);
    let percent = |share: f64| Cell::text(format!("{:.0} %", 100.0 * share));
    for gathered in all {
        let median = gathered.ours.median();
        sheet.push(vec![
            Cell::text(&gathered.name),
            Cell::Number(gathered.row_bytes as f64, 0),
            percent(gathered.share),
            Cell::Number(median, 1),
            Cell::Number(100.0 * gathered.ours.mad() / median, 0),
            Cell::Number(gathered.plain.median(), 1),
            percent(gathered.over(&gathered.plain)),
            Cell::Number(gathered.shuffled.median(), 1),
            percent(gathered.over(&gathered.shuffled)),
        ]);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(folder: &std::path::Path) -> Stage {
        let run = Run { memory_bytes: 1 << 16, ..Run::small(folder) };
        Stage::new(layouts()[0], &run).expect("it fits")
    }

    #[test]
    fn right_sums_pass_and_those_of_other_rows_end_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let stage = stage(folder.path());
        let mut selection = stage.select(0.1, &mut Inputs::new(3));
        let (_, sequence) = &stage.stores[0];
        assert!(stage.gather(sequence, &selection).expect("it is right") > 0.0);
        assert!(stage.read_plain(&selection.positions).expect("it is right") > 0.0);
        let state = AttnState::empty(GROUP_SIZE, HEAD_DIM);
        let positions = selection.positions[0].clone();
        let scores = (&selection.weighed[0], positions.len());
        let checked = stage.known.check_sum(0, &positions, &scores, &state);
        assert!(checked.is_err(), "nothing was summed");
        assert!(Plain::check(&stage.known, 0, &positions, 1).is_err(), "another sum");
        // A store whose rows are those of another head.
        let mut other = sequence.store().sequence();
        stage.known.append(&mut other, (0, 0), 1, 0..stage.num_rows).expect("it fits");
        selection.positions.truncate(1);
        assert!(stage.gather(&other, &selection).is_err(), "other rows");
    }

    #[test]
    fn a_slow_gather_misses_its_bar() {
        let samples = |x: f64| Samples::from_iter([x; 3]);
        let gathered = |share, ours| Gathered {
            name: String::new(),
            share,
            row_bytes: 66,
            plain: samples(7.0),
            shuffled: samples(14.0),
            ours: samples(ours),
        };
        let held = |share, ours| bars(&[gathered(share, ours)])[0].is_held();
        assert!(held(0.02, 10.0) && !held(0.02, 10.1));
        assert!(held(1.0, 20.0) && !held(1.0, 20.1));
    }
}
