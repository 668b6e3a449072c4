//! A data set: heads, each with the tokens that are coded, those that stay exact, and the queries that follow.

use anyhow::{Result, ensure};

use super::{HeadKeys, ProfileRows, RECENT, SINKS};
use crate::synthetic::{self, HeadRows};

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
    pub(crate) head_dim: usize,
    pub(crate) group_size: usize,
    /// Coded keys and their values `[num_coded, head_dim]`.
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    /// Keys and values that stay exact, in order of position `[SINKS + RECENT - 1 + num_steps, head_dim]`.
    pub(crate) resident_keys: Vec<f32>,
    pub(crate) resident_values: Vec<f32>,
    /// `[num_steps, group_size, head_dim]`.
    pub(crate) queries: Vec<f32>,
    query_energy: Vec<f32>,
    profile: Option<(Vec<f32>, Vec<f32>)>,
}

/// Tokens of a head's rows of which `num_coded` are coded and `num_steps` ask.
pub(crate) fn tokens_needed(num_coded: usize, num_steps: usize) -> usize {
    SINKS + num_coded + RECENT - 1 + num_steps
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
        let HeadRows { head_dim, group_size, .. } = *rows;
        let num_tokens = rows.keys.len() / head_dim;
        let needed = tokens_needed(num_coded, num_steps);
        ensure!(num_tokens == needed, "{num_tokens} tokens instead of {needed}");
        let coded = SINKS * head_dim..(SINKS + num_coded) * head_dim;
        let resident = |rows: &[f32]| [&rows[..coded.start], &rows[coded.end..]].concat();
        let first_query = (num_tokens - num_steps) * group_size * head_dim;
        let (context, queries) = rows.queries.split_at(first_query);
        Ok(Self {
            index,
            head_dim,
            group_size,
            keys: rows.keys[coded.clone()].to_vec(),
            values: rows.values[coded.clone()].to_vec(),
            resident_keys: resident(&rows.keys),
            resident_values: resident(&rows.values),
            queries: queries.to_vec(),
            query_energy: synthetic::energy(context, head_dim),
            profile: None,
        })
    }

    /// The same head with keys of other text `[n, head_dim]` and the mean of q² over its queries.
    pub(crate) fn with_profile(mut self, keys: Vec<f32>, query_energy: Vec<f32>) -> Self {
        self.profile = Some((keys, query_energy));
        self
    }

    /// Exact tokens that the queries of step `step` see.
    pub(crate) fn visible(&self, step: usize) -> usize {
        SINKS + RECENT + step
    }

    pub(crate) fn as_keys(&self) -> HeadKeys<'_> {
        let profile = self.profile.as_ref();
        HeadKeys {
            index: self.index,
            head_dim: self.head_dim,
            keys: &self.keys,
            query_energy: &self.query_energy,
            queries: &self.queries,
            sm_scale: 1.0 / (self.head_dim as f32).sqrt(),
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
    fn every_token_is_coded_or_exact_and_the_last_ones_ask() {
        let (num_coded, num_steps) = (96, 5);
        let rows = synthetic::head(1, 8, 2, tokens_needed(num_coded, num_steps));
        let head = HeadData::split(0, &rows, num_coded, num_steps).expect("there are enough");
        assert_eq!(head.keys[..8], rows.keys[SINKS * 8..][..8]);
        let all = [&head.resident_keys[..SINKS * 8], &head.keys, &head.resident_keys[SINKS * 8..]];
        assert_eq!(all.concat(), rows.keys);
        assert_eq!(head.queries.len(), num_steps * 2 * 8);
        // The last query is the last token's, and sees every exact token.
        assert_eq!(head.queries[head.queries.len() - 8..], rows.queries[rows.queries.len() - 8..]);
        assert_eq!(head.visible(num_steps - 1) * 8, head.resident_keys.len());
        assert!(HeadData::split(0, &rows, num_coded + 1, num_steps).is_err());
    }
}
