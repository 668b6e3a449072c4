//! One attention step over a layer of a cache.

use std::time::Instant;

use heterokv_attn::{AttnState, GroupSum, ResidentRows};
use heterokv_quant::Precision;
use rayon::prelude::*;

use super::weigh::{HeldScores, weigh_held};
use super::{KvCache, KvShape, check_len, check_token};
use crate::Result;
use crate::head::{HeadCache, Stores};
use crate::host_step::HostStep;
use crate::select::{Choice, Group, Took};
use crate::spec::CacheConfig;
use crate::times::timed;

/// Exact rows that one task takes, and a page more at most.
const EXACT_TASK_ROWS: usize = 512;

/// Some of the exact rows of a KV head.
struct ExactTask<'a> {
    kv_head: usize,
    rows: Vec<ResidentRows<'a>>,
    num_rows: usize,
}

/// What exact rows come to.
struct ExactPart {
    /// `[num_kv_heads]`.
    states: Vec<AttnState>,
    /// Of each KV head that is watched, in the order of its rows: scores `[group_size, rows]` of
    /// some of them.
    scores: Vec<Vec<Vec<f32>>>,
}

impl KvCache {
    /// Attention of one token's post-RoPE queries `q [num_qo_heads, head_dim]` over all tokens that
    /// a layer holds, into `out [num_qo_heads, head_dim]`. An empty layer gives zeros.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`](crate::Error::NoSuchLayer), [`Error::Length`](crate::Error::Length),
    /// queries that are not finite, and whatever the host store fails with.
    pub fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<()> {
        let shape = self.shape.heads;
        self.check_layer(layer)?;
        check_token("q", q, shape.qo_row_len())?;
        check_len("out", out.len(), shape.qo_row_len())?;
        let group_len = shape.group_size() * shape.head_dim;
        let start = Instant::now();
        let heads = &mut self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        for (head, queries) in heads.iter_mut().zip(q.chunks_exact(group_len)) {
            head.observe_queries(queries);
        }
        self.times.policy += start.elapsed();
        let watched = self.watched(layer);
        let scaled: Vec<f32> = q.iter().map(|q| q * shape.sm_scale).collect();
        let ExactPart { mut states, scores } = self.scan(layer, q, &scaled, &watched);
        self.add_selected(layer, &scaled, &mut states)?;
        self.stats.steps += 1;
        for (state, out) in states.iter().zip(out.chunks_exact_mut(group_len)) {
            out.copy_from_slice(state.out());
        }
        self.show_policy(layer, &watched, &states, &scores)
    }

    /// Of which KV heads of a layer the policy looks at the softmax weights of this step,
    /// `[num_kv_heads]`.
    fn watched(&self, layer: usize) -> Vec<bool> {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        let heads = self.heads[layer * num_kv_heads..][..num_kv_heads].iter().enumerate();
        let wants = |(kv_head, head)| {
            self.policy.as_ref().is_some_and(|policy| policy.wants(layer, kv_head, head))
        };
        heads.map(wants).collect()
    }

    /// Attention over the exact rows of a layer, and the scores of its coded keys, which do not
    /// need each other; `scaled` are the queries times `sm_scale`.
    fn scan(&mut self, layer: usize, q: &[f32], scaled: &[f32], watched: &[bool]) -> ExactPart {
        let start = Instant::now();
        let Self { shape: KvShape { heads: shape, .. }, level, ref mut groups, .. } = *self;
        let heads = &self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        let group_len = shape.group_size() * shape.head_dim;
        let precision = match &self.config {
            CacheConfig::Full => Precision::Exact,
            CacheConfig::Hca(config) => config.precision(),
        };
        for ((group, head), queries) in groups.iter_mut().zip(heads).zip(q.chunks_exact(group_len))
        {
            group.begin(head.coded(), queries, shape.sm_scale, precision);
        }
        let tasks = exact_tasks(heads);
        let sum_exact = |task: &ExactTask<'_>| {
            let mut sum = GroupSum::new(shape.group_size(), shape.head_dim);
            let queries = &scaled[task.kv_head * group_len..][..group_len];
            let is_watched = watched[task.kv_head];
            let mut scores =
                vec![0.0; if is_watched { shape.group_size() * task.num_rows } else { 0 }];
            let wanted = is_watched.then_some((&mut scores[..], task.num_rows));
            sum.add_resident_runs(level, queries, &task.rows, wanted);
            (sum, scores)
        };
        let mut tiles: Vec<_> =
            groups.iter_mut().zip(heads).flat_map(|(group, head)| group.tiles(head)).collect();
        let ((sums, exact_time), ((), scores_time)) = rayon::join(
            || timed(|| tasks.par_iter().map(sum_exact).collect::<Vec<_>>()),
            || timed(|| tiles.par_iter_mut().for_each(|tile| tile.score(level))),
        );
        let empty = || AttnState::empty(shape.group_size(), shape.head_dim);
        let mut exact = ExactPart {
            states: std::iter::repeat_with(empty).take(shape.num_kv_heads).collect(),
            scores: vec![Vec::new(); shape.num_kv_heads],
        };
        for (&ExactTask { kv_head, .. }, (sum, scores)) in tasks.iter().zip(sums) {
            sum.merge_into(&mut exact.states[kv_head]);
            if watched[kv_head] {
                exact.scores[kv_head].push(scores);
            }
        }
        self.times.add_scan(start, exact_time, scores_time);
        exact
    }

    /// Selects among the coded tokens of a layer by their scores, and merges what the rows of the
    /// selected ones come to into the states of the exact rows. Nothing where all rows are exact.
    fn add_selected(
        &mut self,
        layer: usize,
        scaled: &[f32],
        states: &mut [AttnState],
    ) -> Result<()> {
        let Self { shape: KvShape { heads: shape, .. }, level, .. } = *self;
        let Self { config, host, hints, groups, selections, stats, times, .. } = self;
        let (Some(config), Some(host)) = (config.coded(), &*host) else { return Ok(()) };
        let start = Instant::now();
        let selector = config.selector()?;
        let choice = Choice {
            selector: &selector,
            union: config.union,
            with_scores: config.rescore.is_none(),
            level,
        };
        let chosen = groups.par_iter_mut().zip(&*states).zip(&mut *selections);
        let took =
            chosen.map(|((group, state), selection)| group.select(&choice, state.lse(), selection));
        let Took { weights, selection } = took.try_reduce(Took::default, Took::add)?;
        times.add_choice(start, weights, selection);
        let start = Instant::now();
        let step = HostStep { config, host, shape, level, layer, queries: scaled };
        hints.before(host, layer, selections);
        step.add_rows(states, selections)?;
        hints.after(host, layer, selections);
        if !config.renormalise {
            for (state, selection) in states.iter_mut().zip(&*selections) {
                for (head, &lse) in selection.full_lse.iter().enumerate() {
                    state.widen_normaliser(head, lse)?;
                }
            }
        }
        times.host += start.elapsed();
        let heads = &self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        stats.count_rows(heads.iter().map(HeadCache::num_held), selections, &step);
        Ok(())
    }

    /// Shows the policy the softmax weights over all that the watched heads of a layer hold,
    /// whatever was selected, and has the rows come that a step waits for. Nothing where there is
    /// no policy.
    fn show_policy(
        &mut self,
        layer: usize,
        watched: &[bool],
        states: &[AttnState],
        exact: &[Vec<Vec<f32>>],
    ) -> Result<()> {
        let Self { shape: KvShape { heads: shape, .. }, level, .. } = *self;
        let Some(policy) = &mut self.policy else { return Ok(()) };
        let start = Instant::now();
        let heads = &mut self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        let group_size = shape.group_size();
        let coded_scores = |(group, &is_watched): (&Group, &bool)| {
            let mut scores = Vec::new();
            let query_heads = if is_watched { 0..group_size } else { 0..0 };
            query_heads.for_each(|query_head| group.extend_scores(query_head, &mut scores));
            scores
        };
        let coded: Vec<Vec<f32>> = self.groups.iter().zip(watched).map(coded_scores).collect();
        let held = |(kv_head, head): (usize, &HeadCache)| {
            let scores = exact[kv_head].iter().map(Vec::as_slice);
            watched[kv_head]
                .then(|| HeldScores::new(group_size, head.num_resident(), scores, &coded[kv_head]))
        };
        let held: Vec<Option<HeldScores<'_>>> = heads.iter().enumerate().map(held).collect();
        // Where rows are selected, the states are of these alone.
        let lse: Vec<&[f32]> = match self.config.coded() {
            Some(_) => self.selections.iter().map(|selection| &selection.full_lse[..]).collect(),
            None => states.iter().map(AttnState::lse).collect(),
        };
        weigh_held(level, &held, &lse, &mut self.weights);
        policy.observe(layer, heads, &self.weights, self.host.as_ref())?;
        if policy.waits() {
            let stores = Stores { level, device: &self.device, host: None };
            self.stats.host_bytes += policy.arrive(layer, heads, &stores)?;
        }
        self.times.policy += start.elapsed();
        Ok(())
    }
}

/// The exact rows of each KV head in tasks of bounded size.
fn exact_tasks(heads: &[HeadCache]) -> Vec<ExactTask<'_>> {
    let mut tasks = Vec::new();
    for (kv_head, head) in heads.iter().enumerate() {
        let mut task = ExactTask { kv_head, rows: Vec::new(), num_rows: 0 };
        let row_bytes = 2 * head.head_dim();
        for rows in head.exact_segments() {
            task.num_rows += rows.keys.len() / row_bytes;
            task.rows.push(rows);
            if task.num_rows >= EXACT_TASK_ROWS {
                tasks.push(task);
                task = ExactTask { kv_head, rows: Vec::new(), num_rows: 0 };
            }
        }
        if task.num_rows > 0 {
            tasks.push(task);
        }
    }
    tasks
}
