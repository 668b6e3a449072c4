//! A data set: heads, each with the tokens that are coded, those that stay exact, and the queries that follow.

use anyhow::{Result, ensure};
use heterokv_eval::{HeadRows, HeadSample};

use super::{EXACT, HeadKeys, ProfileRows};
use crate::synthetic;

/// Heads of one source.
pub(crate) struct DataSet {
    /// What tables call it.
    pub(crate) name: String,
    /// What it holds.
    pub(crate) details: String,
    /// The stems of the files for its table and its front.
    pub(crate) files: [&'static str; 2],
    /// Whether a model made it.
    pub(crate) is_dumped: bool,
    pub(crate) heads: Vec<HeadData>,
}

/// One (layer, KV head).
pub(crate) struct HeadData {
    index: usize,
    pub(crate) sample: HeadSample,
    profile: Option<(Vec<f32>, Vec<f32>)>,
}

/// Tokens of a head's rows of which `num_coded` are coded and `num_steps` ask.
pub(crate) fn tokens_needed(num_coded: usize, num_steps: usize) -> usize {
    EXACT.sinks + num_coded + EXACT.recent - 1 + num_steps
}

impl HeadData {
    /// Splits the rows of a head: sinks, coded tokens, exact tokens, of which the last `num_steps` ask.
    ///
    /// # Errors
    /// If there are not as many rows as that.
    pub(crate) fn split(
        index: usize,
        rows: &HeadRows,
        num_coded: usize,
        num_steps: usize,
    ) -> Result<Self> {
        let num_tokens = rows.keys.len() / rows.head_dim;
        let needed = tokens_needed(num_coded, num_steps);
        ensure!(num_tokens == needed, "{num_tokens} tokens instead of {needed}");
        Ok(Self { index, sample: HeadSample::split(rows, EXACT, num_steps)?, profile: None })
    }

    /// The same head with keys of other text `[n, head_dim]` and the mean of q² over its queries.
    pub(crate) fn with_profile(mut self, keys: Vec<f32>, query_energy: Vec<f32>) -> Self {
        self.profile = Some((keys, query_energy));
        self
    }

    pub(crate) fn as_keys(&self) -> HeadKeys<'_> {
        let profile = self.profile.as_ref();
        HeadKeys {
            index: self.index,
            head_dim: self.sample.head_dim(),
            keys: self.sample.keys(),
            query_energy: self.sample.query_energy(),
            queries: self.sample.queries(),
            sm_scale: self.sample.sm_scale(),
            profile: profile.map(|(keys, query_energy)| ProfileRows { keys, query_energy }),
        }
    }
}

impl DataSet {
    /// Heads that no model made.
    ///
    /// # Errors
    /// None that this call is known to make.
    pub(crate) fn synthetic(num_heads: usize, num_coded: usize, num_steps: usize) -> Result<Self> {
        let head = |index: usize| {
            let num_tokens = tokens_needed(num_coded, num_steps);
            let rows = synthetic::head(1000 + index as u64, 64, 3, num_tokens);
            HeadData::split(index, &rows, num_coded, num_steps)
        };
        Ok(Self {
            name: "Synthetic keys".to_owned(),
            details: format!(
                "{num_heads} heads with heavy channels and outliers, {num_coded} tokens coded, {num_steps} tokens ask"
            ),
            files: ["quant-quality-synthetic", "quant-front-synthetic"],
            is_dumped: false,
            heads: (0..num_heads).map(head).collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tokens_are_coded_as_were_asked_for() {
        let (num_coded, num_steps) = (96, 5);
        let rows = synthetic::head(1, 8, 2, tokens_needed(num_coded, num_steps));
        let head = HeadData::split(0, &rows, num_coded, num_steps).expect("there are enough");
        assert_eq!(head.as_keys().keys.len(), num_coded * 8);
        assert_eq!(head.as_keys().queries.len(), num_steps * 2 * 8);
        assert!(HeadData::split(0, &rows, num_coded + 1, num_steps).is_err());
    }
}
