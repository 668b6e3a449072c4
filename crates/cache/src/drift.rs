//! Rows that come back when what heads look at has drifted (HeteroCache, arXiv 2601.13684, §3).
//!
//! A pivot holds all tokens; the satellites that attend as it does hold a part of them on the device, and all of them on the
//! host. Every few steps the positions that the pivot attends to are held against those by which was chosen last. Where they
//! have drifted, each satellite's part is chosen anew by the pivot's newest weights, among all tokens but the recent ones,
//! generated ones included; a thread of the store copies the rows into memory of their own, and between two steps they take
//! the place of those on the device.

use heterokv_evict::{DriftMonitor, HeadRole, Scoring, keep_best, top_positions};
use heterokv_offload::{Fetch, Sequence};
use rayon::prelude::*;

use crate::eviction::{Eviction, Refresh};
use crate::head::{HeadCache, Stores};
use crate::{KvShape, Result};

/// Where a profile does not say how stable the positions of a head must be: the threshold of most of those published.
const TAU_STABLE: f64 = 0.5;

/// Tokens that one thread scores at a time.
const PART_TOKENS: usize = 1 << 14;

/// The pivots and satellites of a cache.
#[derive(Debug)]
pub(crate) struct Drift {
    scoring: Scoring,
    steps: usize,
    tau_stable: f64,
    refresh: Refresh,
    num_kv_heads: usize,
    group_size: usize,
    /// First tokens that stay, and last ones that are no candidates.
    sinks: usize,
    recent: usize,
    /// `[num_layers, num_kv_heads]`.
    roles: Vec<HeadRole>,
    /// Of pivots, once there was something to hold coming steps against.
    monitors: Vec<Option<DriftMonitor>>,
    /// Working memory: scores of the candidates.
    scores: Vec<f32>,
    /// Of satellites: rows that are on their way.
    coming: Vec<Option<Coming>>,
    /// Times that satellites were chosen anew.
    num_refreshes: u64,
}

/// Rows on their way to a satellite.
#[derive(Debug)]
struct Coming {
    fetch: Fetch,
    chosen: Chosen,
}

/// What a satellite will hold of the tokens before a position.
#[derive(Clone, Debug)]
struct Chosen {
    positions: Vec<u32>,
    /// The pivot's scores of them.
    scores: Vec<f32>,
    /// Where the candidates ended.
    end: usize,
}

impl Drift {
    /// Of a cache that forgets so; none where nothing comes back.
    pub(crate) fn new(
        eviction: &Eviction,
        shape: &KvShape,
        sinks: usize,
        recent: usize,
    ) -> Option<Self> {
        let steps = eviction.drift_steps()?;
        let heads = &eviction.heads.as_ref()?.profile;
        let roles: Vec<HeadRole> = shape.places().map(|(l, head)| heads.role(l, head)).collect();
        let of_profile = heads.measure().map_or(TAU_STABLE, |measure| measure.tau_stable);
        Some(Self {
            scoring: eviction.scoring,
            steps,
            tau_stable: eviction.tau.unwrap_or(of_profile),
            refresh: eviction.refresh,
            num_kv_heads: shape.heads.num_kv_heads,
            group_size: shape.heads.group_size(),
            sinks,
            recent,
            monitors: roles.iter().map(|_| None).collect(),
            scores: Vec::new(),
            coming: roles.iter().map(|_| None).collect(),
            roles,
            num_refreshes: 0,
        })
    }

    /// Times that satellites were chosen anew.
    pub(crate) fn num_refreshes(&self) -> u64 {
        self.num_refreshes
    }

    /// Whether a head says when what others hold has aged.
    fn is_watched(&self, place: usize) -> bool {
        self.roles[place] == HeadRole::Pivot
    }

    /// Whether what a head attends to in the coming step can still say so.
    pub(crate) fn wants(&self, place: usize) -> bool {
        self.is_watched(place) && self.monitors[place].as_ref().is_none_or(DriftMonitor::needs_set)
    }

    /// Takes note of what the last query of a prompt attends to, by scores `[num_kv_heads][num_tokens]` of a layer.
    pub(crate) fn begin(&mut self, layer: usize, scores: &[Vec<f32>], top_k: usize) -> Result<()> {
        for (kv_head, scores) in scores.iter().enumerate() {
            let place = layer * self.num_kv_heads + kv_head;
            if self.is_watched(place) {
                let end = scores.len().saturating_sub(self.recent);
                let reference = top_positions(&scores[..end], top_k)?;
                self.monitors[place] =
                    Some(DriftMonitor::new(reference, self.steps, self.tau_stable)?);
            }
        }
        Ok(())
    }

    /// Looks at the softmax weights `[num_kv_heads][group_size, held]` of a step of a layer, of the pivots that were
    /// [wanted](Self::wants), and has their satellites' rows fetched where they have drifted; `lengths` are the tokens that each
    /// head of the layer is to choose.
    pub(crate) fn observe(
        &mut self,
        layer: usize,
        weights: &[Vec<f32>],
        (top_k, lengths): (usize, &[usize]),
        host: &Sequence,
    ) -> Result<()> {
        let first = layer * self.num_kv_heads;
        for (kv_head, weights) in weights.iter().enumerate() {
            let place = first + kv_head;
            if !self.is_watched(place) {
                continue;
            }
            if !self.wants(place) {
                self.monitors[place].iter_mut().for_each(DriftMonitor::pass);
            } else if !weights.is_empty() {
                self.score_candidates(weights)?;
                let set = top_positions(&self.scores, top_k)?;
                let Some(monitor) = &mut self.monitors[place] else {
                    let monitor = DriftMonitor::new(set, self.steps, self.tau_stable)?;
                    self.monitors[place] = Some(monitor);
                    continue;
                };
                if monitor.observe(set)? {
                    self.num_refreshes += 1;
                    self.choose((layer, kv_head), lengths, host)?;
                }
            }
        }
        Ok(())
    }

    /// Scores the tokens that count as what a pivot attends to, by softmax weights `[group_size, held]`.
    fn score_candidates(&mut self, weights: &[f32]) -> Result<()> {
        let Self { scoring, group_size, .. } = *self;
        let num_held = weights.len() / group_size;
        self.scores.resize(num_held.saturating_sub(self.recent), 0.0);
        let parts = self.scores.par_chunks_mut(PART_TOKENS).enumerate();
        parts.try_for_each(|(part, scores)| {
            Ok(scoring.scores_from(part * PART_TOKENS, group_size, weights, scores)?)
        })
    }

    /// Has the rows fetched that a pivot's satellites are to hold, by the scores of the candidates.
    fn choose(
        &mut self,
        (layer, pivot): (usize, usize),
        lengths: &[usize],
        host: &Sequence,
    ) -> Result<()> {
        let first = layer * self.num_kv_heads;
        let (scores, end) = (&self.scores[..], self.scores.len());
        for (index, &length) in lengths.iter().enumerate() {
            if self.roles[first + index] != (HeadRole::Satellite { pivot }) {
                continue;
            }
            let length = length.max(self.sinks).min(end);
            let positions = keep_best(scores, length, self.sinks.min(end), 0)?;
            let scores = positions.iter().map(|&token| scores[token as usize]).collect();
            let fetch = host.rows(layer, index).fetch(positions.clone());
            let chosen = Chosen { positions, scores, end };
            self.coming[first + index] = Some(Coming { fetch, chosen });
        }
        Ok(())
    }

    /// Puts rows that have come in the place of those on the device; where steps wait for them, all that are on their way. Gives
    /// the bytes that came.
    pub(crate) fn arrive(
        &mut self,
        layer: usize,
        heads: &mut [HeadCache],
        stores: &Stores<'_>,
    ) -> Result<u64> {
        let first = layer * self.num_kv_heads;
        let refresh = self.refresh;
        let arrived = heads.par_iter_mut().zip(&mut self.coming[first..]).map(|(head, coming)| {
            let Some(Coming { mut fetch, chosen }) = coming.take() else { return Ok(0) };
            let rows = match refresh {
                Refresh::Sync => fetch.wait()?,
                Refresh::Async => match fetch.try_take() {
                    Some(rows) => rows?,
                    None => {
                        *coming = Some(Coming { fetch, chosen });
                        return Ok(0);
                    }
                },
            };
            let Chosen { positions, scores, end } = chosen;
            head.replace_before(stores.device, end, &positions, &scores, &rows)?;
            Ok(rows.len() as u64)
        });
        arrived.sum()
    }

    /// Forgets what is on its way and what was held against, since tokens are gone.
    pub(crate) fn reset(&mut self) {
        self.monitors.iter_mut().for_each(|monitor| *monitor = None);
        self.coming.iter_mut().for_each(|coming| *coming = None);
    }

    /// The same for a fork, whose rows on the host are `host`: what is on its way comes to both.
    pub(crate) fn fork(&self, host: &Sequence) -> Self {
        let coming = self.coming.iter().enumerate().map(|(place, coming)| {
            let chosen = coming.as_ref()?.chosen.clone();
            let rows = host.rows(place / self.num_kv_heads, place % self.num_kv_heads);
            Some(Coming { fetch: rows.fetch(chosen.positions.clone()), chosen })
        });
        Self {
            coming: coming.collect(),
            roles: self.roles.clone(),
            monitors: self.monitors.clone(),
            scores: Vec::new(),
            ..*self
        }
    }
}
