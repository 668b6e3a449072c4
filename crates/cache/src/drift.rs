//! Rows that come back when what heads look at has drifted (HeteroCache, arXiv 2601.13684, §3).
//!
//! A pivot holds all tokens; the satellites that attend as it does hold a part of them on the device, and all of them on the
//! host. Every few steps the positions that the pivot attends to are held against those by which was chosen last. Where they
//! have drifted, each satellite's part is chosen anew by the pivot's newest weights, among all tokens but the recent ones,
//! generated ones included; a thread of the store copies the rows that the satellite lacks into memory of their own, and
//! between two steps it holds what was chosen and what has come since, and nothing else. While rows are on their way, the newest
//! choice made meanwhile waits for them.
//!
//! A satellite's evidence then begins anew: of each token that it holds, with what a scorer of attention makes of the pivot's
//! query that has chosen, as if it were the satellite's own, and steps to come add to it as they do behind a cut. What a scorer
//! of keys knows of a token is the same whenever it comes.

use heterokv_evict::{DriftMonitor, HeadRole, Scoring, keep_best, top_positions};
use heterokv_offload::{Arena, Fetch, Sequence};
use heterokv_quant::RowFormat;
use rayon::prelude::*;

use crate::eviction::{Eviction, Refresh};
use crate::head::HeadCache;
use crate::policy::new_evidence;
use crate::{KvShape, Result};

/// The overlap below which a pivot has drifted, where nothing else is asked for. Published is the threshold of stability by
/// which heads were told apart, with which later steps lose more (`docs/evict.md`).
const TAU: f64 = 0.8;

/// Tokens that one thread scores at a time.
const PART_TOKENS: usize = 1 << 14;

/// The pivots and satellites of a cache.
#[derive(Debug)]
pub(crate) struct Drift {
    scoring: Scoring,
    steps: usize,
    tau: f64,
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
    /// Of satellites.
    arrivals: Vec<Arrivals>,
    /// Times that satellites were chosen anew.
    num_refreshes: u64,
}

/// What is to come to a satellite.
#[derive(Debug, Default)]
struct Arrivals {
    coming: Option<Coming>,
    /// What was chosen while that is on its way.
    next: Option<Chosen>,
}

/// Rows on their way to a satellite.
#[derive(Debug)]
struct Coming {
    fetch: Fetch,
    /// Whose they are: of the tokens chosen those that were not held.
    fetched: Vec<u32>,
    chosen: Chosen,
}

/// What a satellite will hold of the tokens that there were.
#[derive(Clone, Debug)]
struct Chosen {
    /// The best candidates, and all behind the candidates.
    positions: Vec<u32>,
    /// What the pivot's query says of each; empty where the scorer does not look at attention.
    evidence: Vec<f32>,
    /// Tokens that there were.
    num_tokens: usize,
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
        Some(Self {
            scoring: eviction.scoring,
            steps,
            tau: eviction.tau.unwrap_or(TAU),
            refresh: eviction.refresh,
            num_kv_heads: shape.heads.num_kv_heads,
            group_size: shape.heads.group_size(),
            sinks,
            recent,
            monitors: roles.iter().map(|_| None).collect(),
            scores: Vec::new(),
            arrivals: roles.iter().map(|_| Arrivals::default()).collect(),
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
                self.monitors[place] = Some(DriftMonitor::new(reference, self.steps, self.tau)?);
            }
        }
        Ok(())
    }

    /// Bytes on the host for what is to come to a satellite of at most `num_tokens`, of `row_bytes` each: the rows, whose they
    /// are, and two choices.
    pub(crate) fn arrival_bytes(num_tokens: usize, row_bytes: usize) -> usize {
        num_tokens * (row_bytes + size_of::<u32>() + 2 * (size_of::<u32>() + size_of::<f32>()))
    }

    /// Looks at the softmax weights `[num_kv_heads][group_size, held]` of a step of a layer, of the pivots that were
    /// [wanted](Self::wants), and has their satellites' rows fetched where they have drifted; `lengths` are the tokens that each
    /// head of the layer is to choose among the candidates.
    pub(crate) fn observe(
        &mut self,
        layer: usize,
        heads: &[HeadCache],
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
                self.monitors[place].iter_mut().try_for_each(DriftMonitor::pass)?;
            } else if !weights.is_empty() {
                self.score_candidates(weights)?;
                let set = top_positions(&self.scores, top_k)?;
                let Some(monitor) = &mut self.monitors[place] else {
                    let monitor = DriftMonitor::new(set, self.steps, self.tau)?;
                    self.monitors[place] = Some(monitor);
                    continue;
                };
                if monitor.observe(set)? {
                    self.num_refreshes += 1;
                    self.choose((layer, kv_head), lengths, weights)?;
                }
            }
        }
        self.fetch(layer, heads, host);
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

    /// Chooses what a pivot's satellites are to hold, by its weights `[group_size, held]` and the scores of the candidates.
    fn choose(
        &mut self,
        (layer, pivot): (usize, usize),
        lengths: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        let first = layer * self.num_kv_heads;
        let (scores, end) = (&self.scores[..], self.scores.len());
        let num_tokens = weights.len() / self.group_size;
        let mut seen = Vec::new();
        if self.scoring.scorer.sees_attention() {
            let new = |token| new_evidence(self.scoring, None, token, &[], &[]);
            seen = (0..num_tokens).map(new).collect::<Result<_>>()?;
            self.scoring.observe(num_tokens, self.group_size, weights, &mut seen)?;
        }
        for (index, &length) in lengths.iter().enumerate() {
            if self.roles[first + index] != (HeadRole::Satellite { pivot }) {
                continue;
            }
            let length = length.max(self.sinks).min(end);
            let mut positions = keep_best(scores, length, self.sinks.min(end), 0)?;
            positions.extend(end as u32..num_tokens as u32);
            let evidence = positions.iter().filter_map(|&token| seen.get(token as usize));
            let evidence = evidence.copied().collect();
            let chosen = Chosen { positions, evidence, num_tokens };
            self.arrivals[first + index].next = Some(chosen);
        }
        Ok(())
    }

    /// Has the rows fetched that satellites of a layer lack of what was chosen, where none are on their way: a choice made
    /// meanwhile waits, and only the newest does.
    fn fetch(&mut self, layer: usize, heads: &[HeadCache], host: &Sequence) {
        let arrivals = &mut self.arrivals[layer * self.num_kv_heads..];
        for (kv_head, (head, arrivals)) in heads.iter().zip(arrivals).enumerate() {
            if arrivals.coming.is_none()
                && let Some(chosen) = arrivals.next.take()
            {
                let fetched = without(&chosen.positions, head.positions());
                let fetch = host.rows(layer, kv_head).fetch(fetched.clone());
                arrivals.coming = Some(Coming { fetch, fetched, chosen });
            }
        }
    }

    /// Puts rows that have come in their places on the device; where steps wait for them, all that are on their way. Gives the
    /// bytes that came.
    ///
    /// What is known of a token by its key alone, by place, position, key and value, `new_evidence` says.
    pub(crate) fn arrive(
        &mut self,
        layer: usize,
        heads: &mut [HeadCache],
        device: &Arena,
        new_evidence: impl Fn(usize, usize, &[f32], &[f32]) -> Result<f32> + Sync,
    ) -> Result<u64> {
        let first = layer * self.num_kv_heads;
        let arrivals = &mut self.arrivals[first..][..heads.len()];
        if arrivals.iter().all(|arrivals| arrivals.coming.is_none()) {
            return Ok(0);
        }
        let refresh = self.refresh;
        let arrived =
            heads.par_iter_mut().zip(arrivals).enumerate().map(|(index, (head, arrivals))| {
                let Some(Coming { mut fetch, fetched, chosen }) = arrivals.coming.take() else {
                    return Ok(0);
                };
                let rows = match refresh {
                    Refresh::Sync => fetch.wait()?,
                    Refresh::Async => match fetch.try_take() {
                        Some(rows) => rows?,
                        None => {
                            arrivals.coming = Some(Coming { fetch, fetched, chosen });
                            return Ok(0);
                        }
                    },
                };
                chosen.place(head, device, (&fetched, &rows), |position, key, value| {
                    new_evidence(first + index, position, key, value)
                })?;
                Ok(rows.len() as u64)
            });
        arrived.sum()
    }

    /// Forgets what is on its way and what was held against, since tokens are gone.
    pub(crate) fn reset(&mut self) {
        self.monitors.fill(None);
        self.arrivals.fill_with(Arrivals::default);
    }

    /// The same for a fork, whose rows on the host are `host`: what is on its way comes to both.
    pub(crate) fn fork(&self, host: &Sequence) -> Self {
        let arrivals =
            self.arrivals.iter().enumerate().map(|(place, Arrivals { coming, next })| {
                let coming = coming.as_ref().map(|Coming { fetched, chosen, .. }| {
                    let rows = host.rows(place / self.num_kv_heads, place % self.num_kv_heads);
                    let (fetched, chosen) = (fetched.clone(), chosen.clone());
                    Coming { fetch: rows.fetch(fetched.clone()), fetched, chosen }
                });
                Arrivals { coming, next: next.clone() }
            });
        Self {
            arrivals: arrivals.collect(),
            roles: self.roles.clone(),
            monitors: self.monitors.clone(),
            scores: Vec::new(),
            ..*self
        }
    }
}

impl Chosen {
    /// Puts the rows in their places: those `fetched`, f16 keys and values side by side, and those that the head holds. What it
    /// has let go of since the choice stays gone.
    fn place(
        &self,
        head: &mut HeadCache,
        device: &Arena,
        (fetched, rows): (&[u32], &[u8]),
        new_evidence: impl Fn(usize, &[f32], &[f32]) -> Result<f32>,
    ) -> Result<()> {
        let head_dim = head.head_dim();
        let mut fetched = fetched.iter().zip(rows.chunks_exact(4 * head_dim)).peekable();
        let mut held = head.positions().iter().enumerate().peekable();
        let (mut positions, mut evidence, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let mut row_values = vec![0.0; 2 * head_dim];
        for (index, &position) in self.positions.iter().enumerate() {
            let seen = self.evidence.get(index).copied();
            if let Some((_, row)) = fetched.next_if(|&(&fetched, _)| fetched == position) {
                all.extend_from_slice(row);
                evidence.push(match seen {
                    Some(seen) => seen,
                    None => {
                        RowFormat::F16.decode(row, &mut row_values);
                        let (key, value) = row_values.split_at(head_dim);
                        new_evidence(position as usize, key, value)?
                    }
                });
            } else {
                while held.next_if(|&(_, &held)| held < position).is_some() {}
                let Some((index, _)) = held.next_if(|&(_, &held)| held == position) else {
                    continue;
                };
                head.push_row_to(index, &mut all);
                let known = head.evidence().get(index).copied();
                evidence.push(seen.or(known).unwrap_or(0.0));
            }
            positions.push(position);
        }
        head.replace_before(device, self.num_tokens, &positions, &evidence, &all)
    }
}

/// Those of `positions` that are not `held`, all ascending.
fn without(positions: &[u32], held: &[u32]) -> Vec<u32> {
    let mut held = held.iter().peekable();
    let is_missing = |position: &&u32| {
        while held.next_if(|held| held < position).is_some() {}
        held.peek() != Some(position)
    };
    positions.iter().filter(is_missing).copied().collect()
}
