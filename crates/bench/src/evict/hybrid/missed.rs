//! What selections miss of attention, by the role of the head: the rows of its own scores at several top-p, and for satellites
//! the rows that their pivot reads.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use heterokv_cache::{CacheConfig, CacheSpec, HeadProfile, HeadRole, KvShape};
use heterokv_eval::{Error, ExactTokens, HeadRows, exact_scores, visit_layers};
use heterokv_evict::{Rule, SelectScratch, Selector, TokenSet};
use heterokv_model::Model;
use rayon::prelude::*;

use super::ASKED_TOKENS;
use crate::sheet::{Cell, Sheet};

/// Whose first and last tokens are exact anyway, and whose query heads read as many rows at least: `hca-rescore` as it is below
/// 20 %.
const CACHE: &str = "hca-rescore,keys=alloc/4,recent=32";

/// Shares of attention at which a selection is complete.
const TOP_P: [f32; 4] = [0.9, 0.93, 0.96, 0.98];

/// Whose rows heads of a role read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reads {
    Volatile,
    Pivot,
    Anchor,
    Satellite,
    /// Satellites the rows of their pivot.
    OfPivot,
}

impl Reads {
    fn words(self) -> [&'static str; 2] {
        match self {
            Self::Volatile => ["volatile", "own"],
            Self::Pivot => ["pivot", "own"],
            Self::Anchor => ["anchor", "own"],
            Self::Satellite => ["satellite", "own"],
            Self::OfPivot => ["satellite", "the pivot's"],
        }
    }
}

/// Sums over layers and heads.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    num_heads: usize,
    /// Means over the queries of a head, in [0, 1]: rows read of those that are not exact anyway, and attention that they
    /// leave out.
    read: f64,
    missed: f64,
}

/// What selections miss.
#[derive(Debug)]
pub(super) struct Missed {
    exact: ExactTokens,
    /// Of each top-p.
    selectors: Vec<Selector>,
    /// By whose rows are read and the place of the top-p.
    sums: BTreeMap<(Reads, usize), Sums>,
}

/// Attention of the last tokens' queries over the tokens that are not exact anyway.
struct Asked {
    /// `[num_steps][group_size]`.
    steps: Vec<Vec<Query>>,
}

/// One query's.
struct Query {
    /// `[num_coded]`.
    weights: Vec<f32>,
    /// Of the tokens that are exact anyway.
    exact_mass: f64,
}

impl Missed {
    /// Of no head yet, in caches of a shape.
    ///
    /// # Errors
    /// A shape that no cache can have.
    pub(super) fn new(shape: &KvShape) -> Result<Self> {
        let CacheConfig::Hca(config) = CACHE.parse::<CacheSpec>()?.resolve(shape, None)? else {
            bail!("{CACHE} selects nothing");
        };
        let exact = ExactTokens { sinks: config.sinks, recent: config.recent };
        let selector = |&top_p| Selector::new(Rule::TopP(top_p), config.min, config.max);
        let selectors = TOP_P.iter().map(selector).collect::<Result<_, _>>()?;
        Ok(Self { exact, selectors, sums: BTreeMap::new() })
    }

    /// Adds the heads of a model on a text, of which the last tokens ask.
    ///
    /// # Errors
    /// What the model refuses, and attention that is not finite.
    pub(super) fn add(&mut self, model: &Model, text: &[u32], heads: &HeadProfile) -> Result<()> {
        visit_layers(model, &[text], &mut |rows| {
            let of_head = |rows| Asked::of(rows, self.exact);
            let asked: Vec<Asked> = rows.heads.par_iter().map(of_head).collect();
            let roles: Vec<HeadRole> =
                (0..asked.len()).map(|kv_head| heads.role(rows.layer, kv_head)).collect();
            self.add_layer(&asked, &roles)
        })?;
        Ok(())
    }

    fn add_layer(&mut self, asked: &[Asked], roles: &[HeadRole]) -> Result<(), Error> {
        for (place, selector) in self.selectors.iter().enumerate() {
            let taken = asked.par_iter().map(|asked| asked.taken(selector));
            let taken: Vec<Vec<TokenSet>> = taken.collect::<Result<_, _>>()?;
            for (kv_head, &role) in roles.iter().enumerate() {
                let mut add = |reads, rows: &[TokenSet]| {
                    let sums = self.sums.entry((reads, place)).or_default();
                    let [read, missed] = asked[kv_head].read_and_missed(rows);
                    sums.num_heads += 1;
                    sums.read += read;
                    sums.missed += missed;
                };
                let own = &taken[kv_head];
                match role {
                    HeadRole::Volatile => add(Reads::Volatile, own),
                    HeadRole::Pivot => add(Reads::Pivot, own),
                    HeadRole::Anchor => add(Reads::Anchor, own),
                    HeadRole::Satellite { pivot } => {
                        add(Reads::Satellite, own);
                        add(Reads::OfPivot, &taken[pivot]);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn sheet(&self, model: &str) -> Sheet {
        let title = format!("What selections by exact scores miss of attention, on {model}");
        let columns = ["heads", "number", "rows", "top-p", "rows read, %", "attention missed, %"];
        let mut sheet = Sheet::new(title, &columns);
        for (&(reads, place), sums) in &self.sums {
            let [heads, rows] = reads.words();
            let mean = |sum: f64| 100.0 * sum / sums.num_heads as f64;
            sheet.push(vec![
                Cell::text(heads),
                Cell::Number(sums.num_heads as f64, 0),
                Cell::text(rows),
                Cell::Number(f64::from(TOP_P[place]), 2),
                Cell::Number(mean(sums.read), 1),
                Cell::Number(mean(sums.missed), 2),
            ]);
        }
        sheet
    }
}

impl Asked {
    fn of(rows: &HeadRows, exact: ExactTokens) -> Self {
        let HeadRows { head_dim, group_size, sm_scale, .. } = *rows;
        let num_tokens = rows.keys.len() / head_dim;
        let group_len = group_size * head_dim;
        let step = |position: usize| {
            let seen = position + 1;
            let queries = &rows.queries[position * group_len..][..group_len];
            let scores = exact_scores(head_dim, sm_scale, queries, &rows.keys[..seen * head_dim]);
            scores.chunks_exact(seen).map(|scores| Query::of(scores, exact)).collect()
        };
        let first = num_tokens.saturating_sub(ASKED_TOKENS);
        Self { steps: (first..num_tokens).map(step).collect() }
    }

    /// The rows that any query head of the group takes, of each step `[num_coded]`.
    fn taken(&self, selector: &Selector) -> Result<Vec<TokenSet>, Error> {
        let mut scratch = SelectScratch::default();
        let union = |queries: &Vec<Query>| {
            let [mut all, mut taken] = [TokenSet::default(), TokenSet::default()];
            all.clear(queries.first().map_or(0, |query| query.weights.len()));
            for Query { weights, exact_mass } in queries {
                selector.select(weights, *exact_mass, &mut scratch, &mut taken)?;
                all.add_all(&taken);
            }
            Ok(all)
        };
        self.steps.iter().map(union).collect()
    }

    /// The share of rows taken, and the attention that they leave out: means over all queries.
    fn read_and_missed(&self, taken: &[TokenSet]) -> [f64; 2] {
        let (mut read, mut missed, mut num_queries) = (0.0, 0.0, 0);
        for (queries, taken) in self.steps.iter().zip(taken) {
            let share = taken.count() as f64 / taken.num_tokens().max(1) as f64;
            for query in queries {
                read += share;
                let left = query.weights.iter().enumerate().filter(|(t, _)| !taken.contains(*t));
                missed += left.map(|(_, &weight)| f64::from(weight)).sum::<f64>();
                num_queries += 1;
            }
        }
        [read, missed].map(|sum| sum / f64::from(num_queries.max(1)))
    }
}

impl Query {
    /// Of scores of all tokens that it sees.
    fn of(scores: &[f64], ExactTokens { sinks, recent }: ExactTokens) -> Self {
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let coded = sinks.min(weights.len())..weights.len().saturating_sub(recent).max(sinks);
        let coded = coded.start..coded.end.min(weights.len());
        let weights: Vec<f32> = weights[coded].iter().map(|w| (w / sum) as f32).collect();
        let exact_mass = 1.0 - weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
        Self { weights, exact_mass }
    }
}

#[cfg(test)]
mod tests {
    use heterokv_cache::HeadShape;

    use super::*;

    fn missed() -> Missed {
        let heads = HeadShape::new(2, 2, 8).expect("a shape");
        Missed::new(&KvShape { num_layers: 1, heads }).expect("it can be had")
    }

    /// A head that attends to two of 400 tokens only, half each; a query.
    fn asked(first: usize, second: usize) -> Asked {
        let score = |token| if token == first || token == second { 50.0 } else { 0.0 };
        let scores: Vec<f64> = (0..400).map(score).collect();
        Asked { steps: vec![vec![Query::of(&scores, missed().exact)]] }
    }

    #[test]
    fn a_satellite_misses_what_its_pivot_does_not_look_at() {
        // They share one of two tokens, behind those that every head reads, and half of the attention.
        let heads = [asked(200, 210), asked(200, 300)];
        let mut missed = missed();
        let roles = [HeadRole::Pivot, HeadRole::Satellite { pivot: 0 }];
        missed.add_layer(&heads, &roles).expect("they are finite");
        let of = |reads| missed.sums[&(reads, 2)];
        assert!(of(Reads::Pivot).missed < 1e-6 && of(Reads::Satellite).missed < 1e-6);
        let by_pivot = of(Reads::OfPivot);
        assert!((by_pivot.missed - 0.5).abs() < 1e-6, "{by_pivot:?}");
        assert_eq!(by_pivot.read, of(Reads::Pivot).read);
        assert_eq!(missed.sheet("x").num_rows(), 3 * TOP_P.len());
    }

    #[test]
    fn what_is_exact_anyway_is_neither_read_nor_missed() {
        let head = asked(1, 399);
        let Query { weights, exact_mass } = &head.steps[0][0];
        assert_eq!(weights.len(), 400 - 4 - 32);
        assert!(*exact_mass > 1.0 - 1e-6);
        let few = Query::of(&[0.0; 10], missed().exact);
        assert!(few.weights.is_empty() && few.exact_mass == 1.0);
    }
}
