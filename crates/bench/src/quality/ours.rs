//! Our formats, with tables fitted on the keys themselves or on other text.

use anyhow::Result;
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level, Precision, PreparedQueries, ScoreRows};
use heterokv_testkit::{Tolerance, compare};

use super::{CodedScores, HeadKeys, KeyCodec};

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
        let input =
            FitInput { head_dim, keys: fit.0, query_energy: fit.1, seed: head.index as u64 };
        let coder = KeyCoder::fit(self.format, &input)?;
        let mut codes = vec![0; layout.bytes(num_tokens)];
        coder.encode(0, keys, &mut codes)?;
        let mut prepared = PreparedQueries::default();
        coder.prepare(queries, head.sm_scale, Precision::Exact, &mut prepared);
        let mut scores = vec![f32::NAN; queries.len() / head_dim * num_tokens];
        let rows = ScoreRows { scores: &mut scores, stride: num_tokens, maxima: &mut [] };
        coder.score(self.level, &prepared, &codes, num_tokens, rows);
        self.check(head, &coder, &codes, &scores)?;
        let bits_per_element = self.format.bits_per_element(head_dim, counted_tokens)?;
        Ok(Some(CodedScores { bits_per_element, scores }))
    }
}

impl OurCodec {
    /// Scores of the first queries are those of the decoded keys, within the rounding of f32 sums.
    fn check(
        &self,
        head: &HeadKeys<'_>,
        coder: &KeyCoder,
        codes: &[u8],
        scores: &[f32],
    ) -> Result<()> {
        let mut decoded = vec![0.0; head.keys.len()];
        coder.decode(0, codes, &mut decoded);
        let queries = head.queries.chunks(NUM_CHECKED * head.head_dim).next().unwrap_or_default();
        let expected = head.dot_products(queries, &decoded);
        let largest = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
        // Of a key and of what its format adds to it, which is below eight times its largest element.
        let terms = 9.0 * head.head_dim as f64 * largest(queries) * largest(&decoded);
        let roundings = head.head_dim as f64 * f64::from(f32::EPSILON) / 2.0;
        let absolute = roundings * f64::from(head.sm_scale) * terms;
        compare(&scores[..expected.len()], &expected, Tolerance { absolute, relative: 0.0 })
            .map_err(|mismatch| mismatch.at(self.name(), head.index as u64))?;
        Ok(())
    }
}
