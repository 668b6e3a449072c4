//! How much each KV head changes what it reads, and budgets by it, after BaKlaVa (arXiv 2502.13176).
//!
//! The paper names what it measures and no formulas; these are ours. A head whose outputs are what the values of the
//! tokens themselves are moves nothing between tokens, and a layer that leaves the residual stream as it is does
//! nothing: 1 − the mean cosine of the two, each. Heads are ranked, put in four classes of equal size, and given a
//! budget by class; which budgets, a search over a few finds by what they cost.

use heterokv_cache::{KvShape, PromptLayer};
use heterokv_model::Model;

use crate::{Error, Result};

/// Classes of heads, the most important first.
const NUM_CLASSES: usize = 4;

/// How much each head and layer of a model changes.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadImportance {
    num_kv_heads: usize,
    /// `[num_layers, num_kv_heads]`.
    heads: Vec<f64>,
    /// `[num_layers]`.
    layers: Vec<f64>,
}

/// The budgets that are tried beside equal ones.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetGrid {
    /// What a head of each class has, the most important first, in relation to each other.
    pub multipliers: Vec<[f64; NUM_CLASSES]>,
    /// By which power the importance of a layer counts.
    pub lambdas: Vec<f64>,
}

/// What budgets cost, given the weights `[num_layers, num_kv_heads]` of several at once, so that one pass over a sample
/// can serve all: what it loses, its perplexity or divergence, where head i of a cache has `weights[i]` of a budget per
/// head.
pub type Objective<'a> = &'a mut dyn FnMut(&[Vec<f64>]) -> Result<Vec<f64>>;

/// The budget that costs least.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetChoice {
    /// What each head has of a budget per head `[num_layers, num_kv_heads]`; the mean is 1.
    pub weights: Vec<f64>,
    /// The multipliers by which it is made; all 1 where no budget costs less than equal ones.
    pub multipliers: [f64; NUM_CLASSES],
    /// The power of the layers.
    pub lambda: f64,
    /// What it costs.
    pub loss: f64,
    /// What equal budgets cost.
    pub equal_loss: f64,
    /// Budgets that were tried, equal ones among them.
    pub num_tried: usize,
}

impl Default for BudgetGrid {
    /// Up to budgets of which the first class has ten times what the last has, and layers that do not count, count less
    /// than heads, or as much.
    fn default() -> Self {
        Self {
            multipliers: vec![
                [1.25, 1.1, 0.9, 0.75],
                [1.5, 1.2, 0.8, 0.5],
                [1.75, 1.25, 0.7, 0.3],
                [2.0, 1.2, 0.6, 0.2],
            ],
            lambdas: vec![0.0, 0.5, 1.0],
        }
    }
}

/// Measures all heads of `model` on a text, `tokens`, with exact attention.
///
/// # Errors
/// What the model refuses, and [`Error::Importance`].
pub fn measure_importance(model: &Model, tokens: &[u32]) -> Result<HeadImportance> {
    let KvShape { num_layers, heads: shape } = model.kv_shape();
    let hidden_size = model.config().hidden_size;
    let mut heads = vec![0.0; num_layers * shape.num_kv_heads];
    let mut layers = vec![0.0; num_layers];
    // What entered the layer before, whose output enters this one.
    let mut entered: Vec<f32> = Vec::with_capacity(tokens.len() * hidden_size);
    let mut attended = Vec::new();
    let mut observed = Ok(());
    let hidden = model.prefill_observed(tokens, &mut [], &mut |block| {
        if observed.is_err() {
            return;
        }
        let before = block.first * hidden_size;
        match block.layer.checked_sub(1) {
            None => entered.extend_from_slice(block.hidden),
            Some(layer) => {
                let entered = &mut entered[before..][..block.hidden.len()];
                layers[layer] += cosines(entered, block.hidden, hidden_size);
                entered.copy_from_slice(block.hidden);
            }
        }
        attended.resize(block.q.len(), 0.0);
        observed = PromptLayer::new(shape, model.level(), block.k, block.v)
            .and_then(|mut layer| layer.attend(block.first, block.q, &mut attended));
        let values = block.v.chunks_exact(shape.kv_row_len()).skip(block.first);
        for (outputs, values) in attended.chunks_exact(shape.qo_row_len()).zip(values) {
            let groups = outputs.chunks_exact(shape.group_size() * shape.head_dim);
            let heads = &mut heads[block.layer * shape.num_kv_heads..];
            for ((outputs, value), sum) in
                groups.zip(values.chunks_exact(shape.head_dim)).zip(heads)
            {
                let outputs = outputs.chunks_exact(shape.head_dim);
                *sum += outputs.map(|output| cosine(value, output)).sum::<f64>();
            }
        }
    })?;
    observed?;
    layers[num_layers - 1] += cosines(&entered, &hidden, hidden_size);
    let num_tokens = tokens.len() as f64;
    let queries = num_tokens * shape.group_size() as f64;
    let heads = heads.iter().map(|sum| 1.0 - sum / queries).collect();
    let layers = layers.iter().map(|sum| 1.0 - sum / num_tokens).collect();
    HeadImportance::new(shape.num_kv_heads, heads, layers)
}

impl HeadImportance {
    /// Importances of heads `[num_layers, num_kv_heads]` and of layers `[num_layers]`.
    ///
    /// # Errors
    /// [`Error::Importance`] for one that is no number or below 0 by more than rounding, and
    /// [`Error::Cache`] for another number of heads.
    pub fn new(num_kv_heads: usize, heads: Vec<f64>, layers: Vec<f64>) -> Result<Self> {
        let (actual, expected) = (heads.len(), layers.len().saturating_mul(num_kv_heads));
        if actual != expected || actual == 0 {
            Err(heterokv_cache::Error::Length { tensor: "importances", actual, expected })?;
        }
        let is_one = |value: &f64| value.is_finite() && *value >= -1e-6;
        if let Some(index) = heads.iter().position(|value| !is_one(value)) {
            let (layer, kv_head) = (index / num_kv_heads, index % num_kv_heads);
            return Err(Error::Importance { layer, kv_head: Some(kv_head), value: heads[index] });
        }
        if let Some(layer) = layers.iter().position(|value| !is_one(value)) {
            return Err(Error::Importance { layer, kv_head: None, value: layers[layer] });
        }
        Ok(Self { num_kv_heads, heads, layers })
    }

    /// 1 − the mean cosine of the values of the tokens and the outputs of a head's query group, in [0, 2].
    ///
    /// # Panics
    /// When there is no such head.
    #[must_use]
    pub fn head(&self, layer: usize, kv_head: usize) -> f64 {
        assert!(kv_head < self.num_kv_heads, "a KV head of the layer");
        self.heads[layer * self.num_kv_heads + kv_head]
    }

    /// 1 − the mean cosine of what enters a layer and what leaves it, in [0, 2].
    ///
    /// # Panics
    /// When there is no such layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> f64 {
        self.layers[layer]
    }

    /// What each head has of a budget per head, `[num_layers, num_kv_heads]`, of a mean of 1: heads are ordered by
    /// the rank of their importance times that of their layer to the power `lambda`, of equals the first before,
    /// cut into four classes of equal size, and get the multiplier of their class, the first class the first.
    ///
    /// # Errors
    /// [`Error::Budget`] for multipliers that are not above 0 and a `lambda` below 0 or none.
    pub fn budget_weights(
        &self,
        multipliers: &[f64; NUM_CLASSES],
        lambda: f64,
    ) -> Result<Vec<f64>> {
        let refused = |what, range, value| Err(Error::Budget { what, range, value });
        if let Some(&value) = multipliers.iter().find(|m| !(m.is_finite() && **m > 0.0)) {
            return refused("a multiplier of a budget", "a number above 0", value);
        }
        if !(lambda.is_finite() && lambda >= 0.0) {
            return refused("the power of layers", "a number of at least 0", lambda);
        }
        let num_heads = self.heads.len();
        let scores = ranks(&self.heads).into_iter().enumerate().map(|(head, rank)| {
            let layer = self.layers[head / self.num_kv_heads].max(0.0);
            rank / num_heads as f64 * layer.powf(lambda)
        });
        let scores: Vec<f64> = scores.collect();
        let mut order: Vec<usize> = (0..num_heads).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut weights = vec![0.0; num_heads];
        for (place, &head) in order.iter().enumerate() {
            weights[head] = multipliers[place * NUM_CLASSES / num_heads];
        }
        let mean = weights.iter().sum::<f64>() / num_heads as f64;
        weights.iter_mut().for_each(|weight| *weight /= mean);
        Ok(weights)
    }

    /// The budget for which `objective`, asked once, gives least, of equals the first: equal weights, and those of
    /// `grid`.
    ///
    /// # Errors
    /// What `objective` gives, [`Error::Budget`] for a loss that is no number, [`Error::Cache`] for another number of
    /// losses, and as [`HeadImportance::budget_weights`].
    pub fn search(&self, grid: &BudgetGrid, objective: Objective<'_>) -> Result<BudgetChoice> {
        let mut points = vec![([1.0; NUM_CLASSES], 0.0)];
        let mut budgets = vec![vec![1.0; self.heads.len()]];
        for (&multipliers, &lambda) in
            grid.multipliers.iter().flat_map(|m| grid.lambdas.iter().map(move |l| (m, l)))
        {
            let weights = self.budget_weights(&multipliers, lambda)?;
            if !budgets.contains(&weights) {
                points.push((multipliers, lambda));
                budgets.push(weights);
            }
        }
        let losses = objective(&budgets)?;
        let (actual, expected) = (losses.len(), budgets.len());
        if actual != expected {
            Err(heterokv_cache::Error::Length { tensor: "losses", actual, expected })?;
        }
        if let Some(&value) = losses.iter().find(|loss| loss.is_nan()) {
            let (what, range) = ("the loss of a budget", "a number");
            return Err(Error::Budget { what, range, value });
        }
        let mut best = 0;
        for (index, loss) in losses.iter().enumerate() {
            if *loss < losses[best] {
                best = index;
            }
        }
        let (multipliers, lambda) = points[best];
        Ok(BudgetChoice {
            weights: budgets.swap_remove(best),
            multipliers,
            lambda,
            loss: losses[best],
            equal_loss: losses[0],
            num_tried: losses.len(),
        })
    }
}

/// The place of each value among all in rising order, from 1 on; equals share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut ranks, mut first) = (vec![0.0; values.len()], 0);
    for equals in order.chunk_by(|&a, &b| values[a] == values[b]) {
        // The mean of first + 1 ..= first + n.
        let rank = first as f64 + (equals.len() as f64 + 1.0) / 2.0;
        equals.iter().for_each(|&head| ranks[head] = rank);
        first += equals.len();
    }
    ranks
}

/// The sum of the cosines of the rows of `a` and `b`, both `[n, row_len]`.
fn cosines(a: &[f32], b: &[f32], row_len: usize) -> f64 {
    let rows = a.chunks_exact(row_len).zip(b.chunks_exact(row_len));
    rows.map(|(a, b)| cosine(a, b)).sum()
}

/// The cosine of two rows; 0 where one has no length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths == 0.0 { 0.0 } else { product(a, b) / lengths }
}

#[cfg(test)]
mod tests;
