//! How many tokens each head of a cache that forgets may hold, at every length.
//!
//! What stays is shared out in bytes where a ratio or a number of bytes is to be kept, by the sizes of whole pages, so that what
//! the allocations take is never more; in tokens where tokens are asked for.

use heterokv_evict::{Budget, Pyramid, apportion};
use heterokv_offload::StoreShape;

use crate::eviction::{Eviction, Keep};
use crate::exact::ExactRows;
use crate::held::Held;
use crate::plan::{DevicePlan, KEPT_PAGE_TOKENS, full_bytes, host_shape};
use crate::presets::min_tokens_of_kept;
use crate::spec::{HcaConfig, Place};
use crate::{Error, KvShape, Result};

/// The device bytes of one (layer, KV head) that forgets, as a function of the tokens that it holds.
#[derive(Clone, Copy, Debug)]
struct HeadCost {
    head_dim: usize,
    /// How keys are coded; none where rows are exact.
    plan: Option<DevicePlan>,
    /// One head of the store of values, where they are on the device.
    values: Option<StoreShape>,
    has_evidence: bool,
    /// Tokens that it holds in any case: sinks, recent ones, those to fit tables on, and a batch that is forgotten.
    least_tokens: usize,
    /// Whether bytes are a bound at every length, also before there are tables.
    is_bound_always: bool,
}

/// What a cache may hold.
#[derive(Clone, Debug)]
pub(crate) struct Allotment {
    shape: KvShape,
    keep: Keep,
    budget: Budget,
    /// Whether tokens are forgotten behind the prompt too.
    goes_on: bool,
    /// Last tokens that stay in any case.
    recent: usize,
    /// `[num_layers, num_kv_heads]`.
    costs: Vec<HeadCost>,
    /// Heads that hold all tokens.
    is_whole: Vec<bool>,
    /// Shares of the others.
    pub(crate) weights: Vec<f64>,
}

impl Allotment {
    /// Of a config that forgets, checked on its own.
    pub(crate) fn new(config: &HcaConfig, eviction: &Eviction, shape: &KvShape) -> Result<Self> {
        let store = StoreShape { num_layers: 1, num_kv_heads: 1, ..host_shape(config, shape) };
        let cost = |place: (usize, usize)| {
            let plan = match config.is_exact() {
                true => None,
                false => Some(DevicePlan::new(config.keys.format(place), config, shape)?),
            };
            let values = (!config.is_exact() && config.values_on == Place::Device).then_some(store);
            let coded = plan.as_ref().map_or(0, DevicePlan::fit_tokens);
            let least_tokens = config.sinks
                + eviction.recent(config.recent)
                + coded
                + eviction.batch_tokens().unwrap_or(0);
            let head_dim = shape.heads.head_dim;
            let has_evidence = eviction.has_evidence(place);
            let is_bound_always = matches!(eviction.keep, Keep::Bytes(_));
            Ok(HeadCost { head_dim, plan, values, has_evidence, least_tokens, is_bound_always })
        };
        let costs: Vec<HeadCost> = shape.places().map(cost).collect::<Result<_>>()?;
        let weight = |place: (usize, usize)| match eviction.budget {
            Budget::Stability => {
                let heads = eviction.heads.as_ref();
                Ok(heads.map_or(1.0, |heads| heads.profile.weight(place.0, place.1)))
            }
            Budget::Profile => {
                let heads = eviction.heads.as_ref();
                let weight = heads.and_then(|heads| heads.profile.budget_weight(place.0, place.1));
                weight.ok_or(Error::Conflict {
                    conflict: "budget=profile goes by budget weights, which this profile of heads has not; make them \
                               with `heterokv profile --heads --budgets`",
                })
            }
            _ => Ok(1.0),
        };
        Ok(Self {
            shape: *shape,
            keep: eviction.keep,
            budget: eviction.budget,
            goes_on: eviction.batch_tokens().is_some(),
            recent: eviction.recent(config.recent),
            is_whole: shape.places().map(|place| eviction.is_whole(place)).collect(),
            weights: shape.places().map(weight).collect::<Result<_>>()?,
            costs,
        })
    }

    /// Refuses an amount that cannot hold what each head holds in any case.
    pub(crate) fn check(config: &HcaConfig, eviction: &Eviction, shape: &KvShape) -> Result<()> {
        let allotment = Self::new(config, eviction, shape)?;
        match eviction.keep {
            Keep::Own => Ok(()),
            Keep::Ratio(percent) => {
                let min_tokens = min_tokens_of_kept(percent);
                let least = allotment.least_shares(min_tokens).iter().sum::<usize>();
                let least = 100.0 * least as f64 / full_bytes(shape, min_tokens) as f64;
                if least <= percent {
                    return Ok(());
                }
                let preset = "a cache that forgets so";
                Err(Error::Ratio { preset, asked: percent, min_tokens, least })
            }
            // A head that holds all tokens asks for more with every one.
            Keep::Tokens(_) | Keep::Bytes(_) if allotment.is_whole.contains(&true) => {
                Err(Error::Conflict {
                    conflict: "pivots and volatile heads hold all tokens, for which no fixed number will do; keep a \
                               ratio, as in heterocache:50%",
                })
            }
            Keep::Tokens(_) | Keep::Bytes(_) => {
                let least = allotment.least_shares(usize::MAX >> 20).iter().sum::<usize>();
                let total = allotment.total(0);
                if total >= least {
                    return Ok(());
                }
                let heads = allotment.costs.len();
                let (what, of) = match allotment.is_in_tokens() {
                    true => ("tokens of each head", heads),
                    false => ("bytes", 1),
                };
                Err(Error::BudgetTooSmall { what, budget: total / of, least: least.div_ceil(of) })
            }
        }
    }

    /// The heads' shares: bytes, or tokens where tokens are kept.
    fn is_in_tokens(&self) -> bool {
        matches!(self.keep, Keep::Tokens(_))
    }

    fn unit(&self) -> usize {
        match self.is_in_tokens() {
            true => 1,
            false => self.costs[0].unit_bytes(),
        }
    }

    fn total(&self, num_tokens: usize) -> usize {
        match self.keep {
            Keep::Own => usize::MAX,
            Keep::Ratio(percent) => {
                (percent / 100.0 * full_bytes(&self.shape, num_tokens) as f64) as usize
            }
            Keep::Tokens(tokens) => tokens.saturating_mul(self.costs.len()),
            Keep::Bytes(bytes) => bytes,
        }
    }

    /// What a share of `tokens` is, in whole units.
    fn share(&self, head: usize, tokens: usize) -> usize {
        match self.is_in_tokens() {
            true => tokens,
            false => self.costs[head].bytes(tokens).next_multiple_of(self.unit()),
        }
    }

    /// The least that heads must be given at a length.
    fn least_shares(&self, num_tokens: usize) -> Vec<usize> {
        let least = |head: usize| {
            let cost = &self.costs[head];
            let tokens = match self.is_whole[head] {
                true => num_tokens,
                false => cost.least_tokens.min(num_tokens),
            };
            self.share(head, tokens)
        };
        (0..self.costs.len()).map(least).collect()
    }

    /// The shares of all heads at a length, by `weights [num_layers, num_kv_heads]`.
    fn shares_by(&self, num_tokens: usize, weights: &[f64]) -> Result<Vec<usize>> {
        let (least, most) = self.bounds(num_tokens);
        let total = self.total_at(num_tokens);
        Ok(apportion(total, weights, &least, &most, self.unit())?)
    }

    /// The least and the most that heads can be given at a length.
    fn bounds(&self, num_tokens: usize) -> (Vec<usize>, Vec<usize>) {
        let most: Vec<usize> =
            (0..self.costs.len()).map(|head| self.share(head, num_tokens)).collect();
        let least = self.least_shares(num_tokens);
        (least.iter().zip(&most).map(|(least, most)| *least.min(most)).collect(), most)
    }

    /// What is shared out at a length: a text too short for its ratio goes on with what it must have.
    fn total_at(&self, num_tokens: usize) -> usize {
        let total = self.total(num_tokens);
        match self.keep {
            Keep::Ratio(_) => total.max(self.least_shares(num_tokens).iter().sum()),
            _ => total,
        }
    }

    fn shares(&self, num_tokens: usize) -> Result<Vec<usize>> {
        let (beta, counts_window) = match self.budget {
            Budget::Pyramid(beta) => (beta, false),
            Budget::PyramidWithin(beta) => (beta, true),
            Budget::Adaptive(_) => return self.shares_within_layers(num_tokens),
            _ => return self.shares_by(num_tokens, &self.weights),
        };
        // The shape depends on the mean, which is that of equal shares.
        let equal = self.shares_by(num_tokens, &self.weights)?;
        let tokens = |(head, &share)| self.tokens(head, share, num_tokens);
        let tokens: usize = equal.iter().enumerate().map(tokens).sum();
        let mean = tokens as f64 / self.costs.len() as f64;
        let pyramid = Pyramid { beta, window: self.recent, counts_window };
        let of_layers = pyramid.shares(mean, self.shape.num_layers, num_tokens)?;
        let num_kv_heads = self.shape.heads.num_kv_heads;
        let weights = of_layers.iter().flat_map(|&share| std::iter::repeat_n(share, num_kv_heads));
        self.shares_by(num_tokens, &weights.collect::<Vec<_>>())
    }

    /// The shares of heads that compete within their layer: each layer has what equal shares of all would give it.
    fn shares_within_layers(&self, num_tokens: usize) -> Result<Vec<usize>> {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        let equal = self.shares_by(num_tokens, &vec![1.0; self.costs.len()])?;
        let (least, most) = self.bounds(num_tokens);
        let of_layer = |layer: usize| {
            let span = layer * num_kv_heads..(layer + 1) * num_kv_heads;
            let total = equal[span.clone()].iter().sum();
            let (weights, least) = (&self.weights[span.clone()], &least[span.clone()]);
            apportion(total, weights, least, &most[span], self.unit())
        };
        let layers: Vec<Vec<usize>> =
            (0..self.shape.num_layers).map(of_layer).collect::<Result<_, _>>()?;
        Ok(layers.concat())
    }

    /// The most tokens of a head for a share.
    fn tokens(&self, head: usize, share: usize, num_tokens: usize) -> usize {
        match self.is_in_tokens() {
            true => share,
            false => self.costs[head].most_tokens(share, num_tokens),
        }
    }

    /// What fits in a head's last page is its own: whoever holds all tokens needs no other share before that is full.
    fn limit(&self, head: usize, share: usize, num_tokens: usize) -> usize {
        match self.is_whole[head] {
            true => usize::MAX,
            false => self.tokens(head, share, num_tokens.next_multiple_of(KEPT_PAGE_TOKENS)),
        }
    }

    /// The most tokens that each head may hold of `num_tokens`, `[num_layers, num_kv_heads]`; `usize::MAX` where it holds all.
    pub(crate) fn limits(&self, num_tokens: usize) -> Result<Vec<usize>> {
        if self.keep == Keep::Own {
            return Ok(vec![usize::MAX; self.costs.len()]);
        }
        let shares = self.shares(num_tokens)?;
        Ok(shares
            .into_iter()
            .enumerate()
            .map(|(i, share)| self.limit(i, share, num_tokens))
            .collect())
    }

    /// The most device bytes of so many tokens. Where nothing is forgotten behind the prompt, they are all held; where heads
    /// share tokens and not evenly, each can have all that the others leave.
    pub(crate) fn most_bytes(&self, num_tokens: usize) -> Result<usize> {
        let most = |tokens: &[usize]| -> usize {
            let heads = self.costs.iter().zip(tokens);
            heads.map(|(cost, &tokens)| cost.most_bytes(tokens.min(num_tokens))).sum()
        };
        match (self.keep, self.budget) {
            _ if self.keep == Keep::Own || !self.goes_on => {
                Ok(most(&vec![num_tokens; self.costs.len()]))
            }
            (_, Budget::Uniform) => Ok(most(&self.limits(num_tokens)?)),
            (Keep::Tokens(_), _) => {
                let (total, least) = (self.total_at(num_tokens), self.bounds(num_tokens).0);
                let all: usize = least.iter().sum();
                let left = |least: &usize| total.saturating_sub(all - least);
                Ok(most(&least.iter().map(left).collect::<Vec<_>>()))
            }
            _ => Ok(self.total_at(num_tokens)),
        }
    }

    /// Whether some heads hold all tokens, so that the others have less at every length.
    pub(crate) fn has_whole_heads(&self) -> bool {
        self.is_whole.contains(&true)
    }

    /// Gives the heads of a layer shares in proportion to `wanted` tokens, and the limits that they then have.
    pub(crate) fn share_layer(
        &mut self,
        layer: usize,
        num_tokens: usize,
        wanted: &[usize],
    ) -> Result<Vec<usize>> {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        let span = layer * num_kv_heads..(layer + 1) * num_kv_heads;
        let mean = wanted.iter().sum::<usize>() as f64 / wanted.len().max(1) as f64;
        for (weight, &wanted) in self.weights[span.clone()].iter_mut().zip(wanted) {
            *weight = wanted as f64 / mean.max(1.0);
        }
        Ok(self.limits(num_tokens)?[span].to_vec())
    }

    /// Gives all heads shares in proportion to `wanted` tokens.
    pub(crate) fn share_all(&mut self, wanted: &[usize]) {
        self.weights = wanted.iter().map(|&wanted| wanted as f64).collect();
    }

    /// The fewest tokens that a head can be cut to.
    pub(crate) fn least_tokens(&self, head: usize) -> usize {
        self.costs[head].least_tokens
    }
}

impl HeadCost {
    /// Bytes that shares are multiples of: a page of exact rows and what is gathered of its tokens.
    fn unit_bytes(&self) -> usize {
        Self { plan: None, values: None, ..*self }.bytes(KEPT_PAGE_TOKENS)
    }

    /// The most device bytes that a share of so many tokens takes.
    fn bytes(&self, num_held: usize) -> usize {
        if self.is_bound_always { self.most_bytes(num_held) } else { self.bytes_at(num_held) }
    }

    /// The most device bytes that any number of tokens up to this one takes: those that tables are to be fitted on are exact
    /// until there are enough of them.
    fn most_bytes(&self, num_held: usize) -> usize {
        let exact = self.plan.as_ref().map_or(0, |plan| plan.coded_from_tokens() - 1);
        self.bytes_at(num_held).max(self.bytes_at(num_held.min(exact)))
    }

    /// Bytes of so many tokens, wherever the window begins in its pages, and with as many that wait for their group as
    /// there can be.
    fn bytes_at(&self, num_held: usize) -> usize {
        let Some(plan) = &self.plan else {
            let rows = ExactRows::bytes(self.head_dim, KEPT_PAGE_TOKENS, num_held);
            return rows + self.evidence_bytes(num_held);
        };
        let rows = match plan.coded_after_prompt(num_held) {
            0 => plan.after_prompt(num_held).total(),
            coded => {
                let values = self.values.map_or(0, |values| values.bytes(coded));
                plan.most_bytes(plan.sinks + plan.recent + coded) + values
            }
        };
        rows + self.evidence_bytes(num_held)
    }

    fn evidence_bytes(&self, num_held: usize) -> usize {
        if self.has_evidence { Held::evidence_bytes(num_held) } else { 0 }
    }

    /// The most tokens, `num_tokens` at most, that take no more than `bytes`.
    fn most_tokens(&self, bytes: usize, num_tokens: usize) -> usize {
        // The least fits; what is exact until there are tables may not.
        let (mut fits, mut too_many) = (self.least_tokens.min(num_tokens), num_tokens + 1);
        while too_many - fits > 1 {
            let middle = fits.midpoint(too_many);
            if self.bytes(middle) <= bytes {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        fits
    }
}
