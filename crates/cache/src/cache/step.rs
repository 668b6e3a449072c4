//! One attention step over a layer of a cache.

use std::time::Instant;

use heterokv_attn::{AttnState, GroupSum, ResidentRows};
use heterokv_quant::Precision;
use rayon::prelude::*;

use super::weigh::{HeldScores, weigh_held};
use super::{KvCache, check_len, check_token};
use crate::Result;
use crate::head::{HeadCache, Stores};
use crate::host_step::HostStep;
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

impl KvCache {
    /// Attention of one token's post-RoPE queries `q [num_qo_heads, head_dim]` over all tokens that a
    /// layer holds, into `out [num_qo_heads, head_dim]`. An empty layer gives zeros.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`](crate::Error::NoSuchLayer), [`Error::Length`](crate::Error::Length), queries that are not
    /// finite, and whatever the host store fails with.
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
        let start = Instant::now();
        let heads = &*heads;
        let level = self.level;
        let precision = match &self.config {
            CacheConfig::Full => Precision::Exact,
            CacheConfig::Hca(config) => config.precision(),
        };
        for ((group, head), queries) in
            self.groups.iter_mut().zip(heads).zip(q.chunks_exact(group_len))
        {
            group.begin(head.coded(), queries, shape.sm_scale, precision);
        }
        let groups = &mut self.groups;
        let wants = |(kv_head, head)| {
            self.policy.as_ref().is_some_and(|policy| policy.wants(layer, kv_head, head))
        };
        let watched: Vec<bool> = heads.iter().enumerate().map(wants).collect();
        // The resident part and the scores of the coded keys do not need each other.
        let exact = exact_tasks(heads);
        let scaled: Vec<f32> = q.iter().map(|q| q * shape.sm_scale).collect();
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
        let ((resident, resident_time), ((), scores_time)) = rayon::join(
            || timed(|| exact.par_iter().map(sum_exact).collect::<Vec<_>>()),
            || timed(|| tiles.par_iter_mut().for_each(|tile| tile.score(level))),
        );
        drop(tiles);
        let mut states: Vec<AttnState> = (0..shape.num_kv_heads)
            .map(|_| AttnState::empty(shape.group_size(), shape.head_dim))
            .collect();
        for (task, (sum, _)) in exact.iter().zip(&resident) {
            sum.merge_into(&mut states[task.kv_head]);
        }
        self.times.add_scan(start, resident_time, scores_time);
        let mut full_lse: Vec<Vec<f32>> = states.iter().map(|state| state.lse().to_vec()).collect();
        if let (CacheConfig::Hca(config), Some(host)) = (&self.config, &self.host)
            && !config.is_exact()
        {
            let start = Instant::now();
            let weighed = groups.par_iter_mut().zip(&states);
            weighed.for_each(|(group, state)| group.weigh(level, state.lse()));
            self.times.scores += start.elapsed();
            let start = Instant::now();
            let selector = config.selector()?;
            let with_scores = config.rescore.is_none();
            let selections = &mut self.selections;
            groups.par_iter_mut().zip(&mut *selections).try_for_each(|(group, selection)| {
                group.select(&selector, config.union, with_scores, selection)
            })?;
            self.times.selection += start.elapsed();
            let start = Instant::now();
            let step = HostStep { config, host, shape, level, layer, queries: &scaled };
            self.hints.before(host, layer, selections);
            step.add_rows(&mut states, selections)?;
            self.hints.after(host, layer, selections);
            if !config.renormalise {
                for (state, selection) in states.iter_mut().zip(&*selections) {
                    for (head, &lse) in selection.full_lse.iter().enumerate() {
                        state.widen_normaliser(head, lse)?;
                    }
                }
            }
            self.times.host += start.elapsed();
            self.stats.count_rows(heads.iter().map(HeadCache::num_held), selections, &step);
            full_lse = selections.iter().map(|selection| selection.full_lse.clone()).collect();
        }
        self.stats.steps += 1;
        for (state, out) in states.iter().zip(out.chunks_exact_mut(group_len)) {
            out.copy_from_slice(state.out());
        }
        let Some(policy) = &mut self.policy else { return Ok(()) };
        let start = Instant::now();
        let coded: Vec<Vec<f32>> = groups
            .iter()
            .zip(&watched)
            .map(|(group, &is_watched)| {
                let mut scores = Vec::new();
                let query_heads = if is_watched { 0..shape.group_size() } else { 0..0 };
                query_heads.for_each(|query_head| group.extend_scores(query_head, &mut scores));
                scores
            })
            .collect();
        let held = heads.iter().enumerate().map(|(kv_head, head)| {
            let of_head = exact.iter().zip(&resident).filter(|(task, _)| task.kv_head == kv_head);
            let scores = of_head.map(|(_, (_, scores))| &scores[..]);
            watched[kv_head].then(|| {
                let (group_size, num_resident) = (shape.group_size(), head.num_resident());
                HeldScores::new(group_size, num_resident, scores, &coded[kv_head])
            })
        });
        let held: Vec<Option<HeldScores<'_>>> = held.collect();
        weigh_held(level, &held, &full_lse, &mut self.weights);
        let heads = &mut self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
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
