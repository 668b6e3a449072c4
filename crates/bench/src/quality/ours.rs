//! Our formats, with tables fitted on the keys themselves or on other text.

use anyhow::Result;
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level, Precision, PreparedQueries, ScoreRows};
use heterokv_testkit::{Tolerance, compare};

use super::{CodedScores, HeadKeys, KeyCodec};
use crate::rounding;

/// A context for which tables from a profile are counted.
const PROFILE_TOKENS: usize = 32_768;

/// Queries whose scores are checked against decoded keys.
const NUM_CHECKED: usize = 2;

/// A key format of `heterokv-quant`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OurCodec {
    pub(crate) format: KeyFormat,
    pub(crate) tables: Tables,
    pub(crate) level: Level,
}

/// What the tables of a format are fitted on, and so at which length they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// The keys that are coded, at their number.
    Own,
    /// Other text, at 32,768 tokens.
    Profile,
}

impl KeyCodec for OurCodec {
    fn name(&self) -> String {
        match self.tables {
            Tables::Own => self.format.to_string(),
            Tables::Profile => format!("{} + profile", self.format),
        }
    }

    fn scores(&self, head: &HeadKeys<'_>) -> Result<Option<CodedScores>> {
        let HeadKeys { head_dim, keys, queries, .. } = *head;
        let num_tokens = keys.len() / head_dim;
        let Ok(layout) = self.format.layout(head_dim) else { return Ok(None) };
        let (fit, counted_tokens) = match (self.tables, head.profile) {
            (Tables::Own, _) => ((keys, head.query_energy), num_tokens),
            (Tables::Profile, Some(rows)) => ((rows.keys, rows.query_energy), PROFILE_TOKENS),
            (Tables::Profile, None) => return Ok(None),
        };
        if fit.0.len() / head_dim < layout.min_fit_tokens {
            return Ok(None);
        }
        let input = FitInput {
            head_dim,
            keys: fit.0,
            query_energy: fit.1,
            seed: head.index as u64,
            level: self.level,
        };
        let coder = KeyCoder::fit(self.format, &input)?;
        let mut codes = vec![0; layout.bytes(num_tokens)];
        coder.encode(self.level, 0, keys, &mut codes)?;
        let mut prepared = PreparedQueries::default();
        coder.prepare(queries, head.sm_scale, Precision::Exact, &mut prepared);
        let mut scores = vec![f32::NAN; queries.len() / head_dim * num_tokens];
        let rows = ScoreRows { scores: &mut scores, stride: num_tokens, maxima: &mut [] };
        coder.score(self.level, &prepared, &codes, num_tokens, rows);
        let num_checked = NUM_CHECKED.min(queries.len() / head_dim);
        let rounding = rounding::largest(&coder, &prepared, num_checked, &codes);
        let mut decoded = vec![0.0; keys.len()];
        coder.decode(0, &codes, &mut decoded);
        self.check(head, &decoded, &scores[..num_checked * num_tokens], rounding)?;
        let bits_per_element = self.format.bits_per_element(head_dim, counted_tokens)?;
        Ok(Some(CodedScores { bits_per_element, scores }))
    }
}

impl OurCodec {
    /// `scores` of the first queries are those of the decoded keys, within `rounding` of queries and that of
    /// f32 sums.
    fn check(
        &self,
        head: &HeadKeys<'_>,
        decoded: &[f32],
        scores: &[f32],
        rounding: f64,
    ) -> Result<()> {
        let num_queries = scores.len() / (decoded.len() / head.head_dim);
        let queries = &head.queries[..num_queries * head.head_dim];
        let largest = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
        // Of a key and of what its format adds to it, which is below eight times its largest element.
        let terms = 9.0 * head.head_dim as f64 * largest(queries) * largest(decoded);
        let sums = head.head_dim as f64 * f64::from(f32::EPSILON) / 2.0 * terms;
        let absolute = f64::from(head.sm_scale) * sums + rounding;
        let expected = head.dot_products(queries, decoded);
        compare(scores, &expected, Tolerance { absolute, relative: 0.0 })
            .map_err(|mismatch| mismatch.at(self.name(), head.index as u64))?;
        Ok(())
    }
}
