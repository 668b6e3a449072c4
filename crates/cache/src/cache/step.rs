//! One attention step over a layer of a cache.

use std::ops::Add as _;
use std::time::{Duration, Instant};

use heterokv_attn::{AttnState, GroupSum, HeadShape, ResidentRows};
use heterokv_quant::{Level, Precision};
use rayon::prelude::*;

use super::weigh::{HeldScores, weigh_held};
use super::{KvCache, KvShape, check_len, check_token};
use crate::Result;
use crate::head::{HeadCache, Stores};
use crate::host_step::{HostStep, TASK_ROWS, TaskSums};
use crate::select::{Choice, Group, HeadSelection};
use crate::spec::{CacheConfig, HcaConfig};
use crate::times::{Took, timed};

/// Scores of a KV head's exact rows, in their order: `[group_size, rows]` of some of them each.
type ExactScores = Vec<Vec<f32>>;

/// Some of the exact rows of a KV head.
struct ExactTask<'a> {
    rows: Vec<ResidentRows<'a>>,
    num_rows: usize,
}

/// A step of one layer, as its KV heads share it.
struct LayerStep<'a> {
    shape: HeadShape,
    level: Level,
    precision: Precision,
    /// Queries `[num_qo_heads, head_dim]`.
    queries: &'a [f32],
    /// The same times `sm_scale`.
    scaled: &'a [f32],
    /// What chooses coded tokens and sums their rows; none where all rows are exact.
    coded: Option<(Choice<'a>, HostStep<'a>)>,
}

/// What one KV head has in it. Heads need nothing of each other.
struct HeadStep<'a> {
    kv_head: usize,
    head: &'a HeadCache,
    group: &'a mut Group,
    sums: &'a mut TaskSums,
    selection: &'a mut HeadSelection,
    state: AttnState,
    /// Where the head is watched.
    scores: Option<ExactScores>,
    took: Took,
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
        let (states, scores) = self.step(layer, q, &watched)?;
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

    /// The states of a layer's KV heads over all tokens that it holds, and of those that are watched the scores of exact rows.
    ///
    /// Each head goes through its step on its own, and its parts are shared out among the threads that have no head: so
    /// threads meet once. Where rows are on a disk, all heads choose before any is summed, so that the disk has as much to
    /// do at a time as it can.
    fn step(
        &mut self,
        layer: usize,
        q: &[f32],
        watched: &[bool],
    ) -> Result<(Vec<AttnState>, Vec<ExactScores>)> {
        let start = Instant::now();
        let Self { shape: KvShape { heads: shape, .. }, level, .. } = *self;
        let Self { config, host, hints, groups, sums, selections, stats, times, .. } = self;
        let scaled: Vec<f32> = q.iter().map(|q| q * shape.sm_scale).collect();
        let selector = config.coded().map(HcaConfig::selector).transpose()?;
        let coded = config.coded().zip(selector.as_ref()).zip(host.as_ref());
        let coded = coded.map(|((config, selector), host)| {
            let with_scores = config.rescore.is_none();
            let choice = Choice { selector, union: config.union, with_scores, level };
            (choice, HostStep { config, host, shape, level, layer, queries: &scaled })
        });
        let precision = match &*config {
            CacheConfig::Full => Precision::Exact,
            CacheConfig::Hca(config) => config.precision(),
        };
        let step = LayerStep { shape, level, precision, queries: q, scaled: &scaled, coded };
        let heads = &self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        let of_heads = heads.iter().zip(groups).zip(sums).zip(&mut *selections).zip(watched);
        let parts = of_heads.enumerate().map(
            |(kv_head, ((((head, group), sums), selection), is_watched))| HeadStep {
                kv_head,
                head,
                group,
                sums,
                selection,
                state: AttnState::empty(shape.group_size(), shape.head_dim),
                scores: is_watched.then(Vec::new),
                took: Took::default(),
            },
        );
        let mut parts: Vec<HeadStep<'_>> = parts.collect();
        let on_disk = host.as_ref().filter(|host| host.store().hint_pages() > 0);
        parts.par_iter_mut().try_for_each(|part| {
            step.choose(part)?;
            if on_disk.is_none() { step.add_rows(part) } else { Ok(()) }
        })?;
        times.add(start, parts.iter().map(|part| part.took).fold(Took::default(), Took::add));
        if let Some(host) = on_disk {
            let start = Instant::now();
            hints.before(host, layer, parts.iter().map(|part| &*part.selection));
            parts.par_iter_mut().try_for_each(|part| step.add_rows(part))?;
            hints.after(host, layer, parts.iter().map(|part| &*part.selection));
            times.host += start.elapsed();
        }
        let taken =
            parts.into_iter().map(|part| (part.state, part.scores.unwrap_or_default())).unzip();
        if let Some((_, host)) = &step.coded {
            stats.count_rows(heads.iter().map(HeadCache::num_held), selections, host);
        }
        Ok(taken)
    }

    /// Shows the policy the softmax weights over all that the watched heads of a layer hold,
    /// whatever was selected, and has the rows come that a step waits for. Nothing where there is
    /// no policy.
    fn show_policy(
        &mut self,
        layer: usize,
        watched: &[bool],
        states: &[AttnState],
        exact: &[ExactScores],
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

impl LayerStep<'_> {
    /// Attention over the exact rows of a head, the scores of its coded keys, and the choice among them.
    fn choose(&self, part: &mut HeadStep<'_>) -> Result<()> {
        let Self { shape, level, .. } = *self;
        let coded = part.head.coded();
        let group_len = shape.group_size() * shape.head_dim;
        let queries = &self.queries[part.kv_head * group_len..][..group_len];
        let ((), took) = timed(|| part.group.begin(coded, queries, shape.sm_scale, self.precision));
        part.took.scores += took;
        self.add_exact(part);
        let Some((choice, _)) = &self.coded else { return Ok(()) };
        if let Some(coded) = coded {
            part.took.scores += part.group.score(coded, level);
        }
        part.took = part.took + part.group.select(choice, part.state.lse(), part.selection)?;
        Ok(())
    }

    /// Attention over the exact rows of a head.
    fn add_exact(&self, part: &mut HeadStep<'_>) {
        let Self { shape, level, .. } = *self;
        let group_len = shape.group_size() * shape.head_dim;
        let queries = &self.scaled[part.kv_head * group_len..][..group_len];
        let tasks = exact_tasks(part.head);
        let is_watched = part.scores.is_some();
        let sums = part.sums.empty(tasks.len(), &shape);
        let sum_exact = |(task, sum): (&ExactTask<'_>, &mut GroupSum)| {
            timed(|| {
                let num_scores = if is_watched { shape.group_size() * task.num_rows } else { 0 };
                let mut scores = vec![0.0; num_scores];
                let wanted = is_watched.then_some((&mut scores[..], task.num_rows));
                sum.add_resident_runs(level, queries, &task.rows, wanted);
                scores
            })
        };
        let summed = tasks.par_iter().zip(&mut *sums).map(sum_exact);
        let (scores, took): (Vec<_>, Vec<Duration>) = summed.unzip();
        sums.iter().for_each(|sum| sum.merge_into(&mut part.state));
        if let Some(of_head) = &mut part.scores {
            *of_head = scores;
        }
        part.took.resident += took.into_iter().sum::<Duration>();
    }

    /// Merges what the rows of the selected tokens come to into the state of the exact rows. Nothing where all rows are exact.
    fn add_rows(&self, part: &mut HeadStep<'_>) -> Result<()> {
        let Some((_, host)) = &self.coded else { return Ok(()) };
        let HeadStep { kv_head, selection, state, sums, .. } = part;
        part.took.host += host.add_rows_of(*kv_head, selection, state, sums)?;
        if !host.config.renormalise {
            for (head, &lse) in selection.full_lse.iter().enumerate() {
                state.widen_normaliser(head, lse)?;
            }
        }
        Ok(())
    }
}

/// The exact rows of a KV head in tasks of [`TASK_ROWS`], and a page more at most.
fn exact_tasks(head: &HeadCache) -> Vec<ExactTask<'_>> {
    let mut tasks = Vec::new();
    let mut task = ExactTask { rows: Vec::new(), num_rows: 0 };
    let row_bytes = 2 * head.head_dim();
    for rows in head.exact_segments() {
        task.num_rows += rows.keys.len() / row_bytes;
        task.rows.push(rows);
        if task.num_rows >= TASK_ROWS {
            tasks.push(std::mem::replace(&mut task, ExactTask { rows: Vec::new(), num_rows: 0 }));
        }
    }
    if task.num_rows > 0 {
        tasks.push(task);
    }
    tasks
}
