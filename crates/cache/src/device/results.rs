//! What comes to the host of a step of one layer.

use heterokv_attn::HeadShape;
use heterokv_attn::device::SelectScratch;
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Landing};

use super::Layer;
use super::scratch::Scratch;
use crate::Result;
use crate::select::HeadSelection;

/// What is to come to the host beside selections.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) shape: HeadShape,
    pub(super) q: Option<Bound<'a>>,
    pub(super) kv: Option<[Bound<'a>; 2]>,
    /// Scores of what is selected.
    pub(super) has_scores: bool,
    /// Log-sum-exps of the resident tokens and of all.
    pub(super) has_lses: bool,
}

/// What has come.
#[derive(Default)]
pub(super) struct Results {
    pub(super) q: Vec<f32>,
    pub(super) kv: Vec<f32>,
    /// `[num_qo_heads]`, natural logarithm.
    pub(super) resident_lse: Vec<f32>,
    /// By KV head; empty where nothing is coded.
    pub(super) selections: Vec<HeadSelection>,
}

impl Wanted<'_> {
    /// Bytes that can land in a step of a layer.
    pub(super) fn num_bytes(&self, own: &Layer) -> u64 {
        let mut bytes: u64 =
            self.q.iter().chain(self.kv.iter().flatten()).map(Bound::num_bytes).sum();
        let (qo, kv) = (self.shape.num_qo_heads, self.shape.num_kv_heads);
        bytes += 4 * (kv + kv * own.expected) as u64;
        if self.has_scores {
            bytes += 4 * (qo * own.expected) as u64;
        }
        if self.has_lses {
            bytes += 4 * qo as u64 + SelectScratch::choice_bytes(qo);
        }
        bytes
    }

    pub(super) fn make_room(&self, landing: &mut Landing, gpu: &Gpu, own: &Layer) -> Result<()> {
        let needed = self.num_bytes(own);
        if needed > landing.num_bytes() {
            *landing = gpu.landing("a step's results", needed + needed / 4)?;
        }
        Ok(())
    }

    pub(super) fn land(
        &self,
        commands: &mut Commands<'_>,
        landing: &Landing,
        at: &mut u64,
    ) -> Result<()> {
        for bound in self.q.iter().chain(self.kv.iter().flatten()) {
            land(commands, landing, at, *bound)?;
        }
        Ok(())
    }

    /// The first `room` selected tokens of each head of a set.
    pub(super) fn land_selection(
        &self,
        commands: &mut Commands<'_>,
        (landing, at): (&Landing, &mut u64),
        scratch: &Scratch,
        (num_heads, room): (usize, usize),
    ) -> Result<()> {
        let num_bytes = 4 * room as u64;
        let row = 4 * scratch.max_tokens() as u64;
        land(commands, landing, at, Bound::part(&scratch.num_taken, 0, 4 * num_heads as u64))?;
        for head in 0..num_heads as u64 {
            let part = Bound::part(&scratch.positions, head * row, num_bytes);
            land(commands, landing, at, part)?;
        }
        let num_queries = num_heads * self.shape.group_size();
        if self.has_scores {
            for head in 0..num_queries as u64 {
                let part = Bound::part(&scratch.taken_scores, head * row, num_bytes);
                land(commands, landing, at, part)?;
            }
        }
        if self.has_lses {
            let bytes = SelectScratch::choice_bytes(num_queries);
            land(commands, landing, at, Bound::part(scratch.choices(), 0, bytes))?;
        }
        Ok(())
    }

    pub(super) fn results(&self, reader: &mut Reader<'_>) -> Results {
        let len = |bound: &Bound<'_>| bound.num_bytes() as usize / 4;
        Results {
            q: reader.floats(self.q.as_ref().map_or(0, len)),
            kv: reader.floats(self.kv.iter().flatten().map(len).sum()),
            resident_lse: Vec::new(),
            selections: Vec::new(),
        }
    }

    /// Reads what was selected by KV head; gives the most that one selects.
    pub(super) fn read_selections(
        &self,
        reader: &mut Reader<'_>,
        own: &Layer,
        room: usize,
        results: &mut Results,
    ) -> usize {
        let group_size = self.shape.group_size();
        let mut most = 0;
        results.selections.resize_with(self.shape.num_kv_heads, HeadSelection::default);
        for set in own.sets.iter().filter(|set| set.max_tokens() > 0) {
            let counts = reader.words(set.heads().len());
            most = counts.iter().fold(most, |most, &count| most.max(count as usize));
            for (&kv_head, &count) in set.heads().iter().zip(&counts) {
                let mut positions = reader.words(room);
                positions.truncate(count as usize);
                results.selections[kv_head].positions = positions;
            }
            if self.has_scores {
                for (&kv_head, &count) in set.heads().iter().zip(&counts) {
                    let selection = &mut results.selections[kv_head];
                    for _ in 0..group_size {
                        let row = reader.floats(room);
                        let row = &row[..room.min(count as usize)];
                        selection.taken.extend(row.iter().map(|&s| s != f32::NEG_INFINITY));
                        selection.scores.extend(row);
                    }
                }
            }
            if self.has_lses {
                let bytes = SelectScratch::choice_bytes(set.heads().len() * group_size);
                let lses = SelectScratch::lses(reader.bytes(bytes as usize));
                for (&kv_head, lses) in set.heads().iter().zip(lses.chunks_exact(group_size)) {
                    results.selections[kv_head].full_lse = lses.to_vec();
                }
            }
        }
        most
    }
}

/// Lets a part of a buffer land behind what does already.
pub(super) fn land(
    commands: &mut Commands<'_>,
    landing: &Landing,
    at: &mut u64,
    bound: Bound<'_>,
) -> Result<()> {
    commands.land(bound, (landing, *at))?;
    *at += bound.num_bytes();
    Ok(())
}

/// Copies the log-sum-exps of the KV heads of a set to where its selection looks for them.
pub(super) fn copy_lses(
    commands: &mut Commands<'_>,
    heads: &[usize],
    shape: HeadShape,
    lse: &Buffer,
    scratch: &Scratch,
) -> Result<()> {
    let bytes = 4 * shape.group_size() as u64;
    if heads.len() == shape.num_kv_heads {
        return Ok(commands.copy((lse, 0), (&scratch.resident, 0), bytes * heads.len() as u64)?);
    }
    for (member, &kv_head) in heads.iter().enumerate() {
        let (from, to) = (kv_head as u64 * bytes, member as u64 * bytes);
        commands.copy((lse, from), (&scratch.resident, to), bytes)?;
    }
    Ok(())
}

/// Reads what has landed in the order in which it was told to.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let bytes = &self.bytes[self.at..][..len];
        self.at += len;
        bytes
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(self.bytes(4 * len))
    }

    pub(super) fn words(&mut self, len: usize) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(self.bytes(4 * len))
    }
}
