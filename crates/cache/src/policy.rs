//! A cache's forgetting: which tokens of a prompt stay, and which make room for those that come.

mod saved;

use heterokv_evict::{
    Budget, ExpectedScores, LastQueries, Scorer, Scoring, adaptive, global, keep_best, keep_voted,
    key_diff, key_norm, norm_drop,
};
use heterokv_offload::Sequence;
use rayon::prelude::*;

use crate::allotment::Allotment;
use crate::drift::Drift;
use crate::eviction::{Eviction, Refresh};
use crate::head::{HeadCache, Stores};
use crate::plan::KEPT_PAGE_TOKENS;
use crate::spec::HcaConfig;
use crate::watch::LayerEvidence;
use crate::{KvShape, Result};

pub(crate) use saved::SavedPolicy;

/// What decides in a cache that forgets.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) eviction: Eviction,
    allotment: Allotment,
    /// First tokens that stay.
    sinks: usize,
    /// Last tokens that stay.
    recent: usize,
    num_kv_heads: usize,
    /// What is expected of queries to come, `[num_layers, num_kv_heads]`, where tokens are scored by that and a prompt was seen.
    expected: Vec<Option<ExpectedScores>>,
    /// The most tokens of each head, `[num_layers, num_kv_heads]`, of `limits_at` tokens.
    limits: Vec<usize>,
    limits_at: usize,
    /// Whether rows are exact ones on the device.
    is_exact: bool,
    /// What brings rows back; none where what is forgotten is gone.
    drift: Option<Drift>,
}

/// What a head keeps of a prompt.
pub(crate) struct Kept {
    /// The tokens, ascending.
    pub(crate) positions: Vec<u32>,
    /// What is known of every token of the prompt.
    pub(crate) evidence: Vec<f32>,
}

impl Policy {
    /// Of a config that was checked.
    pub(crate) fn new(config: &HcaConfig, eviction: &Eviction, shape: &KvShape) -> Result<Self> {
        let allotment = Allotment::new(config, eviction, shape)?;
        Ok(Self {
            eviction: eviction.clone(),
            expected: vec![None; shape.places().count()],
            limits: vec![0; shape.places().count()],
            limits_at: 0,
            is_exact: config.is_exact(),
            drift: Drift::new(eviction, shape, config.sinks, eviction.recent(config.recent)),
            allotment,
            sinks: config.sinks,
            recent: eviction.recent(config.recent),
            num_kv_heads: shape.heads.num_kv_heads,
        })
    }

    /// What each head of a layer keeps of a prompt of `num_tokens`.
    pub(crate) fn keep_of_prompt(
        &mut self,
        layer: usize,
        num_tokens: usize,
        LayerEvidence { heads, last, expected }: LayerEvidence<'_>,
    ) -> Result<Vec<Kept>> {
        self.take_expected(layer, expected);
        let positions = match num_tokens {
            0 => vec![Vec::new(); heads.len()],
            _ => self.best_of_prompt(layer, num_tokens, &heads, &last)?,
        };
        let kept = positions.into_iter().zip(heads);
        Ok(kept.map(|(positions, evidence)| Kept { positions, evidence }).collect())
    }

    /// The tokens of a prompt that is not empty, ascending, by evidence and softmax weights of its last query as
    /// [`LayerEvidence`] has them.
    fn best_of_prompt(
        &mut self,
        layer: usize,
        num_tokens: usize,
        evidence: &[Vec<f32>],
        last: &[&[f32]],
    ) -> Result<Vec<Vec<u32>>> {
        let (sinks, recent) = (self.sinks, self.recent);
        let scoring = self.eviction.scoring;
        let mut scores: Vec<Vec<f32>> =
            evidence.iter().map(|evidence| scoring.scores(evidence)).collect();
        let limits = self.allotment.limits(num_tokens)?;
        if let Some(drift) = &mut self.drift {
            let of_query = |last: &&[f32]| scoring.scores_of_query(last.len() / num_tokens, last);
            let of_last = last.iter().map(of_query).collect::<Result<Vec<_>, _>>()?;
            self.limits.clone_from(&limits);
            self.limits_at = num_tokens;
            drift.begin(layer, &of_last, mean_limit(&self.limits))?;
            if scoring.scorer == Scorer::LastQuery {
                scores = of_last;
            }
        }
        let of_layer = &limits[layer * self.num_kv_heads..][..self.num_kv_heads];
        let best = |limits: &[usize]| -> Result<Vec<Vec<u32>>> {
            let heads = scores.iter().zip(limits);
            heads.map(|(scores, &limit)| Ok(keep_best(scores, limit, sinks, recent)?)).collect()
        };
        match self.eviction.budget {
            Budget::Votes => {
                let window = self.eviction.scoring.window;
                let voted = |evidence| keep_voted(evidence, num_tokens, window, sinks, recent);
                Ok(evidence.iter().map(|head| voted(head)).collect::<Result<_, _>>()?)
            }
            // Decided once all layers are there.
            Budget::Global => Ok(vec![(0..num_tokens as u32).collect(); scores.len()]),
            Budget::NormDrop(theta) | Budget::NormDropTail(theta) => {
                let attention: Vec<&[f32]> =
                    last.iter().flat_map(|head| head.chunks_exact(num_tokens)).collect();
                let queries = LastQueries { attention: &attention, scores: &slices(&scores) };
                let counts_sinks = matches!(self.eviction.budget, Budget::NormDrop(_));
                let kept = norm_drop(queries, theta, sinks, recent, counts_sinks)?;
                best(&vec![kept; scores.len()])
            }
            Budget::Adaptive(floor) => {
                let total = of_layer.iter().map(|&limit| limit.min(num_tokens)).sum();
                let wanted = adaptive(&slices(&scores), total, floor, sinks, recent)?;
                let limits = self.allotment.share_layer(layer, num_tokens, &wanted)?;
                best(&limits)
            }
            _ => best(of_layer),
        }
    }

    /// Decides over all layers of a prompt of `num_tokens`, where the budget is shared out among all of them: as soon as every
    /// head has it, whichever layer came last, sorts what is held everywhere at once, and cuts every head.
    pub(crate) fn settle(
        &mut self,
        heads: &mut [HeadCache],
        stores: &mut Stores<'_>,
        num_tokens: usize,
    ) -> Result<()> {
        let is_whole = || heads.iter().all(|head| head.num_tokens() == num_tokens);
        if self.eviction.budget != Budget::Global || !is_whole() {
            return Ok(());
        }
        self.share_globally(heads, num_tokens)?;
        self.limits = self.allotment.limits(num_tokens)?;
        self.limits_at = num_tokens;
        self.cut_all(heads, stores, |policy, index, head, stores| {
            policy.cut(head, stores, policy.limits[index])
        })
    }

    fn share_globally(&mut self, heads: &[HeadCache], num_tokens: usize) -> Result<()> {
        let scores: Vec<Vec<f32>> =
            heads.iter().map(|head| self.scores(head)).collect::<Result<_>>()?;
        let limits = self.allotment.limits(num_tokens)?;
        // What hangs over a page of one head is a page.
        let pages = |&limit: &usize| limit.min(num_tokens).next_multiple_of(KEPT_PAGE_TOKENS);
        let total = limits.iter().map(pages).sum();
        let wanted = global(&slices(&scores), total, KEPT_PAGE_TOKENS, self.sinks, self.recent)?;
        self.allotment.share_all(&wanted);
        Ok(())
    }

    /// Makes room in a layer for one token more, where its heads may not hold it.
    ///
    /// `heads` are those of all layers: what there is room for is shared out among them, so that whoever has to give up something
    /// does so before another gets it, with the first layer's token.
    pub(crate) fn make_room(
        &mut self,
        layer: usize,
        heads: &mut [HeadCache],
        stores: &mut Stores<'_>,
    ) -> Result<()> {
        let Some(batch) = self.eviction.batch_tokens() else { return Ok(()) };
        let span = match layer {
            0 => 0..heads.len(),
            _ => layer * self.num_kv_heads..(layer + 1) * self.num_kv_heads,
        };
        let num_tokens = heads[layer * self.num_kv_heads].num_tokens() + 1;
        if self.eviction.budget == Budget::Votes {
            if num_tokens.is_multiple_of(batch) {
                self.cut_all(&mut heads[span], stores, |policy, _, head, stores| {
                    policy.cut_voted(head, stores)
                })?;
            }
            return Ok(());
        }
        let is_over = |place: usize| heads[place].num_held() >= self.limits[place];
        // Heads that hold all tokens leave less to the others with every one.
        let is_due = layer == 0 && self.allotment.has_whole_heads();
        if !is_due && !span.clone().any(is_over) {
            return Ok(());
        }
        // Layers that lag behind the first will have as many tokens.
        self.limits_at = self.limits_at.max(num_tokens);
        if layer == 0 && self.eviction.budget == Budget::Global {
            self.share_globally(heads, self.limits_at)?;
        }
        self.limits = self.allotment.limits(self.limits_at)?;
        let first = span.start;
        self.cut_all(&mut heads[span], stores, |policy, index, head, stores| {
            let limit = policy.limits[first + index];
            if head.num_held() < limit {
                return Ok(());
            }
            let least = policy.allotment.least_tokens(first + index).saturating_sub(batch);
            policy.cut(head, stores, (limit - 1).min(limit.saturating_sub(batch).max(least)))?;
            if policy.eviction.scoring.scorer == Scorer::Window {
                // The window of queries that come next.
                head.evidence_mut().fill(0.0);
            }
            Ok(())
        })
    }

    /// Cuts heads, on all threads where their rows are exact: the store of coded ones has one writer.
    fn cut_all(
        &self,
        heads: &mut [HeadCache],
        stores: &mut Stores<'_>,
        cut: impl Fn(&Self, usize, &mut HeadCache, &mut Stores<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        if !self.is_exact {
            let mut heads = heads.iter_mut().enumerate();
            return heads.try_for_each(|(index, head)| cut(self, index, head, stores));
        }
        let (level, device) = (stores.level, stores.device);
        heads.par_iter_mut().enumerate().try_for_each(|(index, head)| {
            cut(self, index, head, &mut Stores { level, device, host: None })
        })
    }

    /// Leaves the best `limit` tokens of a head.
    fn cut(&self, head: &mut HeadCache, stores: &mut Stores<'_>, limit: usize) -> Result<()> {
        if head.num_held() <= limit {
            return Ok(());
        }
        let scores = self.scores(head)?;
        let (sinks, recent) = head.protected(self.sinks, self.recent);
        let mut kept = keep_best(&scores, limit, sinks, recent)?;
        let over = head.part_of_group(&kept);
        if over > 0 {
            kept = keep_best(&scores, kept.len() - over, sinks, recent)?;
        }
        head.keep(stores, &kept)
    }

    /// Leaves the tokens of a head that were voted for of late.
    fn cut_voted(&self, head: &mut HeadCache, stores: &mut Stores<'_>) -> Result<()> {
        let (sinks, recent) = head.protected(self.sinks, self.recent);
        let window = self.eviction.scoring.window;
        let mut kept = keep_voted(head.evidence(), head.num_tokens(), window, sinks, recent)?;
        let over = head.part_of_group(&kept);
        // Coded tokens go by whole groups: a few with votes, the oldest of them, go with those without, or all wait.
        if sinks + over + recent > kept.len() {
            return Ok(());
        }
        kept.drain(sinks..sinks + over);
        if kept.len() < head.num_held() { head.keep(stores, &kept) } else { Ok(()) }
    }

    /// What is known of a token of a head when it comes, before any query has looked at it.
    pub(crate) fn evidence_of(
        &self,
        head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) -> Result<f32> {
        let expected = self.expected[head].as_ref();
        new_evidence(self.eviction.scoring, expected, position, key, value)
    }

    fn scores(&self, head: &HeadCache) -> Result<Vec<f32>> {
        match self.eviction.scoring.scorer {
            Scorer::KeyDiff => Ok(key_diff(&head.keys(), head.head_dim())?),
            Scorer::Position => {
                Ok(head.positions().iter().map(|&position| position as f32).collect())
            }
            _ => Ok(self.eviction.scoring.scores(head.evidence())),
        }
    }

    /// Whether a step is to show the attention of a head over what it holds.
    pub(crate) fn wants(&self, layer: usize, kv_head: usize, head: &HeadCache) -> bool {
        let place = layer * self.num_kv_heads + kv_head;
        let is_scored = self.eviction.watches_steps() && !head.evidence().is_empty();
        // Only the last query before a cut counts.
        let is_due = || {
            self.eviction.scoring.scorer != Scorer::LastQuery
                || head.num_held() >= self.limits[place]
        };
        self.drift.as_ref().is_some_and(|drift| drift.wants(place)) || is_scored && is_due()
    }

    /// Takes note of the softmax weights of a step over what the heads of a layer hold, `[num_kv_heads][group_size, held]`; empty
    /// where they were not [wanted](Self::wants).
    pub(crate) fn observe(
        &mut self,
        layer: usize,
        heads: &mut [HeadCache],
        weights: &[Vec<f32>],
        host: Option<&Sequence>,
    ) -> Result<()> {
        let scoring = self.eviction.scoring;
        heads.par_iter_mut().zip(weights).try_for_each(|(head, weights)| {
            if weights.is_empty() || head.evidence().is_empty() {
                return Ok(());
            }
            let step = head.num_tokens();
            let group_size = weights.len() / head.num_held();
            scoring.observe(step, group_size, weights, head.evidence_mut())
        })?;
        let (Some(drift), Some(host)) = (&mut self.drift, host) else { return Ok(()) };
        let num_tokens = heads[0].num_tokens();
        let first = layer * self.num_kv_heads;
        let batch = self.eviction.batch_tokens().unwrap_or(0);
        let room = |&limit: &usize| limit.min(num_tokens).saturating_sub(self.recent + batch);
        let lengths: Vec<usize> =
            self.limits[first..][..self.num_kv_heads].iter().map(room).collect();
        drift.observe(layer, heads, weights, (mean_limit(&self.limits), &lengths), host)
    }

    /// Whether a step waits for the rows that it has fetched.
    pub(crate) fn waits(&self) -> bool {
        self.drift.is_some() && self.eviction.refresh == Refresh::Sync
    }

    /// Puts rows that have come in their places in the heads of a layer, and gives their bytes.
    pub(crate) fn arrive(
        &mut self,
        layer: usize,
        heads: &mut [HeadCache],
        stores: &Stores<'_>,
    ) -> Result<u64> {
        let Some(drift) = &mut self.drift else { return Ok(0) };
        let (scoring, expected) = (self.eviction.scoring, &self.expected);
        drift.arrive(layer, heads, stores.device, |head, position, key, value| {
            new_evidence(scoring, expected[head].as_ref(), position, key, value)
        })
    }

    /// Times that rows were chosen to come back.
    pub(crate) fn num_refreshes(&self) -> u64 {
        self.drift.as_ref().map_or(0, Drift::num_refreshes)
    }

    /// Forgets what depends on tokens that are gone.
    pub(crate) fn reset(&mut self) {
        self.limits_at = 0;
        // There is room for fewer; beside heads that hold all tokens, limits are made anew with every token anyway.
        if !self.allotment.has_whole_heads() {
            self.limits.fill(0);
        }
        if let Some(drift) = &mut self.drift {
            drift.reset();
        }
    }

    /// The same for a fork, whose rows on the host are `host`.
    pub(crate) fn fork(&self, host: Option<&Sequence>) -> Self {
        let drift = self.drift.as_ref().zip(host).map(|(drift, host)| drift.fork(host));
        Self {
            eviction: self.eviction.clone(),
            allotment: self.allotment.clone(),
            expected: self.expected.clone(),
            limits: self.limits.clone(),
            drift,
            ..*self
        }
    }

    /// Bytes of host memory that it takes beside the rows.
    pub(crate) fn host_bytes(&self) -> usize {
        self.expected.iter().flatten().map(ExpectedScores::num_bytes).sum()
    }

    /// Takes what is expected of queries behind a prompt in the heads of a layer.
    fn take_expected(&mut self, layer: usize, expected: Vec<ExpectedScores>) {
        for (place, expected) in self.expected[layer * self.num_kv_heads..].iter_mut().zip(expected)
        {
            *place = Some(expected);
        }
    }
}

/// What is known of a token that no query has looked at, of a head of whose queries this is `expected`.
pub(crate) fn new_evidence(
    scoring: Scoring,
    expected: Option<&ExpectedScores>,
    position: usize,
    key: &[f32],
    value: &[f32],
) -> Result<f32> {
    match scoring.scorer {
        Scorer::KeyNorm => Ok(key_norm(key, key.len())?[0]),
        Scorer::Expected => match expected {
            Some(expected) => Ok(expected.score(key, value)?),
            None => Ok(0.0),
        },
        // The step at which it comes, so that it has a window of steps to be looked at in.
        Scorer::Votes | Scorer::VotesSeen => Ok((position + 1) as f32),
        _ => Ok(0.0),
    }
}

/// The mean of the limits of heads that have one.
fn mean_limit(limits: &[usize]) -> usize {
    let bounded: Vec<usize> = limits.iter().copied().filter(|&limit| limit != usize::MAX).collect();
    bounded.iter().sum::<usize>() / bounded.len().max(1)
}

fn slices(rows: &[Vec<f32>]) -> Vec<&[f32]> {
    rows.iter().map(Vec::as_slice).collect()
}

#[cfg(test)]
mod tests;
