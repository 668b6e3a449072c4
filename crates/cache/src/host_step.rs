//! The part of an attention step that the host takes: the sum of the rows that were selected.

use std::ops::Range;
use std::time::Duration;

use heterokv_attn::{AttnState, GroupSum, HeadShape, HostScores};
use heterokv_evict::Union;
use heterokv_offload::Sequence;
use heterokv_quant::Level;
use rayon::prelude::*;

use crate::plan::host_shape;
use crate::select::HeadSelection;
use crate::spec::{HcaConfig, Place};
use crate::times::timed;
use crate::{KvShape, Result};

/// Rows that one task takes, exact ones in whole pages: their sum takes microseconds, far more than handing it to another
/// thread, and a head has several for the threads to share.
pub(crate) const TASK_ROWS: usize = 512;

/// What the rows of one layer are summed with.
pub(crate) struct HostStep<'a> {
    pub(crate) config: &'a HcaConfig,
    pub(crate) host: &'a Sequence,
    pub(crate) shape: HeadShape,
    pub(crate) level: Level,
    pub(crate) layer: usize,
    /// Queries `[num_qo_heads, head_dim]` times `sm_scale`; looked at where rows are re-scored.
    pub(crate) queries: &'a [f32],
}

impl HostStep<'_> {
    /// Bytes of a row that comes from the host.
    pub(crate) fn row_bytes(&self) -> u64 {
        if self.config.values_on == Place::Device {
            return 0;
        }
        let shape = KvShape { num_layers: 1, heads: self.shape };
        host_shape(self.config, &shape).layout.row_bytes() as u64
    }

    /// Sums the rows of what each KV head selected and merges them into its state.
    pub(crate) fn add_rows(
        &self,
        states: &mut [AttnState],
        selections: &[HeadSelection],
    ) -> Result<()> {
        let heads = states.par_iter_mut().zip(selections).enumerate();
        heads.try_for_each(|(kv_head, (state, selection))| {
            self.add_rows_of(kv_head, selection, state, &mut TaskSums::default()).map(drop)
        })
    }

    /// The same of one KV head; gives the time that it took on all threads together.
    pub(crate) fn add_rows_of(
        &self,
        kv_head: usize,
        selection: &HeadSelection,
        state: &mut AttnState,
        sums: &mut TaskSums,
    ) -> Result<Duration> {
        let num_rows = selection.positions.len();
        let sums = sums.empty(num_rows.div_ceil(TASK_ROWS), &self.shape);
        let tasks = sums.par_iter_mut().enumerate().map(|(task, sum)| {
            let span = task * TASK_ROWS..num_rows.min((task + 1) * TASK_ROWS);
            let (summed, took) = timed(|| self.sum_rows(kv_head, selection, span, sum));
            summed.map(|()| took)
        });
        let took = tasks.try_reduce(Duration::default, |a, b| Ok(a + b))?;
        sums.iter().for_each(|sum| sum.merge_into(state));
        Ok(took)
    }

    fn sum_rows(
        &self,
        kv_head: usize,
        selection: &HeadSelection,
        span: Range<usize>,
        sum: &mut GroupSum,
    ) -> Result<()> {
        let group_size = self.shape.group_size();
        let stride = selection.positions.len();
        let by_head = self.config.union == Union::Head;
        let scores = if self.config.rescore.is_some() {
            let group_len = group_size * self.shape.head_dim;
            let queries = &self.queries[kv_head * group_len..][..group_len];
            let taken = by_head.then(|| (&selection.taken[span.start..], stride));
            HostScores::Exact { queries, taken }
        } else {
            HostScores::Coded { scores: &selection.scores[span.start..], stride }
        };
        let rows = self.host.rows(self.layer, kv_head);
        Ok(sum.add_host(self.level, &rows, &selection.positions[span], scores)?)
    }
}

/// What the tasks of a KV head sum, reused from step to step and layer to layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskSums(Vec<GroupSum>);

impl TaskSums {
    /// Sums of so many tasks, of no rows yet.
    pub(crate) fn empty(&mut self, num_tasks: usize, shape: &HeadShape) -> &mut [GroupSum] {
        let Self(sums) = self;
        if sums.len() < num_tasks {
            sums.resize(num_tasks, GroupSum::new(shape.group_size(), shape.head_dim));
        }
        let sums = &mut sums[..num_tasks];
        sums.iter_mut().for_each(GroupSum::reset);
        sums
    }
}
