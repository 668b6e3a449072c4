//! The part of an attention step that the host takes: the sum of the rows that were selected.

use std::ops::Range;

use heterokv_attn::{AttnState, GroupSum, HeadShape, HostScores};
use heterokv_evict::Union;
use heterokv_offload::Sequence;
use heterokv_quant::Level;
use rayon::prelude::*;

use crate::plan::host_shape;
use crate::select::HeadSelection;
use crate::spec::{HcaConfig, Place};
use crate::{KvShape, Result};

/// Host rows that one task takes at most.
const TASK_ROWS: usize = 512;

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
        let tasks: Vec<(usize, Range<usize>)> = selections
            .iter()
            .enumerate()
            .flat_map(|(kv_head, selection)| {
                let num_rows = selection.positions.len();
                let starts = (0..num_rows).step_by(TASK_ROWS);
                starts.map(move |start| (kv_head, start..(start + TASK_ROWS).min(num_rows)))
            })
            .collect();
        let sums: Vec<GroupSum> = tasks
            .par_iter()
            .map(|(kv_head, span)| self.sum_rows(*kv_head, &selections[*kv_head], span.clone()))
            .collect::<Result<_>>()?;
        for ((kv_head, _), sum) in tasks.iter().zip(&sums) {
            sum.merge_into(&mut states[*kv_head]);
        }
        Ok(())
    }

    fn sum_rows(
        &self,
        kv_head: usize,
        selection: &HeadSelection,
        span: Range<usize>,
    ) -> Result<GroupSum> {
        let group_size = self.shape.group_size();
        let mut sum = GroupSum::new(group_size, self.shape.head_dim);
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
        sum.add_host(self.level, &rows, &selection.positions[span], scores)?;
        Ok(sum)
    }
}
