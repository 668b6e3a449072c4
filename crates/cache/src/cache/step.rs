//! One attention step over a layer of a cache.

use std::ops::{Add as _, Range};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use heterokv_attn::{AttnState, GroupSum, HeadShape};
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

/// Segments of a task at most: each has a row.
const MAX_TASK_SEGMENTS: usize = TASK_ROWS;

/// What a KV head's part of a step is worked out in, reused from step to step and layer to layer.
#[derive(Clone, Debug)]
pub(super) struct HeadWork {
    sums: TaskSums,
    /// The exact rows in tasks of [`TASK_ROWS`], and a page more at most.
    tasks: Vec<ExactTask>,
    /// Of all tokens.
    state: AttnState,
    /// Whether the policy looks at the softmax weights of this step.
    is_watched: bool,
    /// Where it does, the scores of the exact rows in their order: `[group_size, num_rows]` of each task, and behind them
    /// what earlier steps have left.
    scores: Vec<Vec<f32>>,
    took: Took,
}

/// Some of the exact rows of a KV head.
#[derive(Clone, Debug, Default)]
struct ExactTask {
    /// Those of the head that they lie in.
    segments: Range<usize>,
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
    work: &'a mut HeadWork,
    selection: &'a mut HeadSelection,
}

impl HeadWork {
    pub(super) fn new(shape: &HeadShape) -> Self {
        Self {
            sums: TaskSums::default(),
            tasks: Vec::new(),
            state: AttnState::empty(shape.group_size(), shape.head_dim),
            is_watched: false,
            scores: Vec::new(),
            took: Took::default(),
        }
    }
}

/// The parts of a layer's KV heads in a step.
fn parts<'a>(
    heads: &'a [HeadCache],
    groups: &'a mut [Group],
    work: &'a mut [HeadWork],
    selections: &'a mut [HeadSelection],
) -> impl ParallelIterator<Item = HeadStep<'a>> {
    let of_heads = (heads, groups, work, selections).into_par_iter().enumerate();
    of_heads.map(|(kv_head, (head, group, work, selection))| HeadStep {
        kv_head,
        head,
        group,
        work,
        selection,
    })
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
        self.watch(layer);
        self.step(layer, q)?;
        self.stats.steps += 1;
        for (work, out) in self.work.iter().zip(out.chunks_exact_mut(group_len)) {
            out.copy_from_slice(work.state.out());
        }
        self.show_policy(layer)
    }

    /// Notes of which KV heads of a layer the policy looks at the softmax weights of this step.
    fn watch(&mut self, layer: usize) {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        let heads = self.heads[layer * num_kv_heads..][..num_kv_heads].iter().enumerate();
        for ((kv_head, head), work) in heads.zip(&mut self.work) {
            let policy = self.policy.as_ref();
            work.is_watched = policy.is_some_and(|policy| policy.wants(layer, kv_head, head));
        }
    }

    /// Leaves the states of a layer's KV heads over all tokens that it holds, and of those that are watched the scores of
    /// exact rows, in their working memory.
    ///
    /// Each head goes through its step on its own, and its parts are shared out among the threads that have no head: so
    /// threads meet once. Where rows are on a disk, all heads choose before any is summed, so that the disk has as much to
    /// do at a time as it can.
    fn step(&mut self, layer: usize, q: &[f32]) -> Result<()> {
        let start = Instant::now();
        let Self { shape: KvShape { heads: shape, .. }, level, .. } = *self;
        let Self { config, host, hints, groups, work, scaled, selections, stats, times, .. } = self;
        scaled.clear();
        scaled.extend(q.iter().map(|q| q * shape.sm_scale));
        let selector = config.coded().map(HcaConfig::selector).transpose()?;
        let coded = config.coded().zip(selector.as_ref()).zip(host.as_ref());
        let coded = coded.map(|((config, selector), host)| {
            let with_scores = config.rescore.is_none();
            let choice = Choice { selector, union: config.union, with_scores, level };
            (choice, HostStep { config, host, shape, level, layer, queries: scaled })
        });
        let precision = match &*config {
            CacheConfig::Full => Precision::Exact,
            CacheConfig::Hca(config) => config.precision(),
        };
        let step = LayerStep { shape, level, precision, queries: q, scaled, coded };
        let heads = &self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        let on_disk = host.as_ref().filter(|host| host.store().hint_pages() > 0);
        parts(heads, groups, work, selections).try_for_each(|mut part| {
            step.choose(&mut part)?;
            if on_disk.is_none() { step.add_rows(&mut part) } else { Ok(()) }
        })?;
        times.add(start, work.iter().map(|work| work.took).fold(Took::default(), Took::add));
        if let Some(host) = on_disk {
            let start = Instant::now();
            hints.before(host, layer, selections.iter());
            parts(heads, groups, work, selections)
                .try_for_each(|mut part| step.add_rows(&mut part))?;
            hints.after(host, layer, selections.iter());
            times.host += start.elapsed();
        }
        if let Some((_, host)) = &step.coded {
            stats.count_rows(heads.iter().map(HeadCache::num_held), selections, host);
        }
        Ok(())
    }

    /// Shows the policy the softmax weights over all that the watched heads of a layer hold,
    /// whatever was selected, and has the rows come that a step waits for. Nothing where there is
    /// no policy.
    fn show_policy(&mut self, layer: usize) -> Result<()> {
        let Self { shape: KvShape { heads: shape, .. }, level, .. } = *self;
        let Some(policy) = &mut self.policy else { return Ok(()) };
        let start = Instant::now();
        let heads = &mut self.heads[layer * shape.num_kv_heads..][..shape.num_kv_heads];
        let group_size = shape.group_size();
        let coded_scores = |(group, work): (&Group, &HeadWork)| {
            let mut scores = Vec::new();
            let query_heads = if work.is_watched { 0..group_size } else { 0..0 };
            query_heads.for_each(|query_head| group.extend_scores(query_head, &mut scores));
            scores
        };
        let coded: Vec<Vec<f32>> = self.groups.iter().zip(&self.work).map(coded_scores).collect();
        let held = |(kv_head, head): (usize, &HeadCache)| {
            let (work, coded) = (&self.work[kv_head], &coded[kv_head]);
            let scores = work.scores.iter().take(work.tasks.len()).map(Vec::as_slice);
            work.is_watched.then(|| HeldScores::new(group_size, head.num_resident(), scores, coded))
        };
        let held: Vec<Option<HeldScores<'_>>> = heads.iter().enumerate().map(held).collect();
        // Where rows are selected, the states are of these alone.
        let lse: Vec<&[f32]> = match self.config.coded() {
            Some(_) => self.selections.iter().map(|selection| &selection.full_lse[..]).collect(),
            None => self.work.iter().map(|work| work.state.lse()).collect(),
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
        let HeadStep { kv_head, head, group, work, selection } = part;
        let coded = head.coded();
        let group_len = shape.group_size() * shape.head_dim;
        let queries = &self.queries[*kv_head * group_len..][..group_len];
        let ((), mut scoring) =
            timed(|| group.begin(coded, queries, shape.sm_scale, self.precision));
        let resident = self.add_exact(*kv_head, head, work);
        if self.coded.is_some()
            && let Some(coded) = coded
        {
            scoring += group.score(coded, level);
        }
        work.took = Took { scores: scoring, resident, ..Took::default() };
        if let Some((choice, _)) = &self.coded {
            work.took = work.took + group.select(choice, work.state.lse(), selection)?;
        }
        Ok(())
    }

    /// Attention over the exact rows of a head, from nothing on; gives the time that it took on all threads together.
    fn add_exact(&self, kv_head: usize, head: &HeadCache, work: &mut HeadWork) -> Duration {
        let Self { shape, level, .. } = *self;
        let group_size = shape.group_size();
        let group_len = group_size * shape.head_dim;
        let queries = &self.scaled[kv_head * group_len..][..group_len];
        let HeadWork { sums, tasks, state, is_watched, scores, .. } = work;
        split(head, tasks);
        let sums = sums.empty(tasks.len(), &shape);
        if *is_watched && scores.len() < tasks.len() {
            scores.resize_with(tasks.len(), Vec::new);
        }
        let add = |task: &ExactTask, sum: &mut GroupSum, scores: Option<(&mut [f32], usize)>| {
            let ((), took) = timed(|| {
                // Filled where it is; collecting it would copy all of its room.
                let mut rows = ArrayVec::<_, MAX_TASK_SEGMENTS>::new();
                rows.extend(task.segments.clone().map(|index| head.exact_segment(index)));
                sum.add_resident_runs(level, queries, &rows, scores);
            });
            took
        };
        let took = if *is_watched {
            let of_tasks = (&*tasks, &mut *sums, scores).into_par_iter();
            let took = of_tasks.map(|(task, sum, scores)| {
                scores.clear();
                scores.resize(group_size * task.num_rows, 0.0);
                add(task, sum, Some((scores, task.num_rows)))
            });
            took.sum()
        } else {
            (&*tasks, &mut *sums).into_par_iter().map(|(task, sum)| add(task, sum, None)).sum()
        };
        state.reset();
        sums.iter().for_each(|sum| sum.merge_into(state));
        took
    }

    /// Merges what the rows of the selected tokens come to into the state of the exact rows. Nothing where all rows are exact.
    fn add_rows(&self, part: &mut HeadStep<'_>) -> Result<()> {
        let Some((_, host)) = &self.coded else { return Ok(()) };
        let HeadStep { kv_head, selection, work, .. } = part;
        let HeadWork { sums, state, took, .. } = &mut **work;
        took.host += host.add_rows_of(*kv_head, selection, state, sums)?;
        if !host.config.renormalise {
            for (head, &lse) in selection.full_lse.iter().enumerate() {
                state.widen_normaliser(head, lse)?;
            }
        }
        Ok(())
    }
}

/// Splits the exact rows of a KV head into tasks.
fn split(head: &HeadCache, tasks: &mut Vec<ExactTask>) {
    tasks.clear();
    let row_bytes = 2 * head.head_dim();
    let mut task = ExactTask::default();
    for index in 0..head.num_exact_segments() {
        task.num_rows += head.exact_segment(index).keys.len() / row_bytes;
        task.segments.end = index + 1;
        if task.num_rows >= TASK_ROWS || task.segments.len() == MAX_TASK_SEGMENTS {
            tasks.push(std::mem::replace(
                &mut task,
                ExactTask { segments: index + 1..index + 1, num_rows: 0 },
            ));
        }
    }
    if task.num_rows > 0 {
        tasks.push(task);
    }
}
