//! PyramidKV's budgets of layers: attention is spread in lower layers and narrow in upper ones.

use crate::{Error, Result};

/// How the shares of layers fall from the first to the last (PyramidKV, arXiv 2406.02069, §4.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pyramid {
    /// How much narrower the narrowest layer is than the mean, at least 1 (there: 20).
    pub beta: f64,
    /// The last tokens of the prompt, which every layer keeps.
    pub window: usize,
    /// Whether the window counts within the tokens that fall from layer to layer, as in NVIDIA kvpress 0.5.5;
    /// else, as published, they fall from the mean without the window, and each layer has the window beside them.
    pub counts_window: bool,
}

impl Pyramid {
    /// Tokens per head of each layer, `[num_layers]`, falling, whose mean is `mean` (all of `num_tokens` where it is
    /// no less): not whole, to be shared out by [`apportion`](super::apportion), which makes them so. kvpress
    /// rounds each by itself.
    ///
    /// One layer has the mean. Where the pyramid does not fit the prompt, all have it: published, where the
    /// prompt is shorter than twice the mean, in kvpress, where the narrowest layer would be less than
    /// the window. No layers: none.
    ///
    /// # Errors
    /// [`Error::Range`] for a `beta` below 1 or a mean that is not a number of at least 0,
    /// [`Error::BudgetTooSmall`] for a mean below the window, as far as there are so many tokens.
    pub fn shares(&self, mean: f64, num_layers: usize, num_tokens: usize) -> Result<Vec<f64>> {
        check_beta(self.beta)?;
        if mean.is_nan() || mean < 0.0 {
            let (what, range) = ("mean tokens of a layer", "[0, infinity]");
            return Err(Error::Range { what, range, value: mean });
        }
        let window = self.window.min(num_tokens);
        if mean < window as f64 {
            return Err(Error::BudgetTooSmall { budget: mean as usize, least: window });
        }
        let mean = mean.min(num_tokens as f64);
        let beside = if self.counts_window { 0.0 } else { window as f64 };
        let room = (num_tokens - window) as f64;
        let spread = mean - beside;
        let mut narrowest = spread / self.beta;
        let mut widest = 2.0 * spread - narrowest;
        if widest >= room {
            widest = room;
            narrowest = 2.0 * spread - widest;
        }
        let fits = match self.counts_window {
            true => widest >= narrowest && narrowest >= window as f64,
            false => num_tokens as f64 >= 2.0 * spread,
        };
        if !fits || num_layers < 2 {
            return Ok(vec![mean; num_layers]);
        }
        let step = (widest - narrowest) / (num_layers - 1) as f64;
        Ok((0..num_layers).map(|layer| widest - layer as f64 * step + beside).collect())
    }
}

pub(super) fn check_beta(beta: f64) -> Result<()> {
    match beta >= 1.0 && beta.is_finite() {
        true => Ok(()),
        false => Err(Error::Range { what: "beta", range: "[1, infinity)", value: beta }),
    }
}
