//! What each key format costs in each head, measured on a text, and the mix that costs least at a size.
//!
//! A head's keys are coded in each format in turn, all others staying exact, and the attention that results is
//! held against the exact one for real queries: in f64, with the same sinks and recent tokens exact as in a
//! cache. Where coded keys only select, the error is that of the tokens that they miss.
//!
//! What counts is how far the error Δ of the outputs, once it has gone through the layer's output projection,
//! moves the residual stream h that enters the layer: |W_o·Δ|² over |h|², the mean over the tokens that ask.
//! A head whose attention goes wrong without an effect is then cheap. (Mixes chosen by the divergence of
//! attention distributions, for which all heads are equal, have several times the divergence of predictions
//! where a text repeats itself; `docs/methods/hca.md` has the figures.)

use heterokv_cache::{KeyFormat, KvShape};
use heterokv_evict::Selector;
use heterokv_model::{Model, Progress};
use heterokv_quant::mix::{Candidate, choose};
use heterokv_quant::{FitInput, KeyCoder, Level, Precision, PreparedQueries, ScoreRows};
use rayon::prelude::*;

use crate::attention::{ExactAttention, exact_scores};
use crate::heads::{ExactTokens, HeadSample, LayerRows, visit_layers};
use crate::projected::OutputColumns;
use crate::{Error, Result};

/// How sensitivities are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct SensitivitySettings {
    /// The formats among which a mix will choose.
    pub formats: Vec<KeyFormat>,
    /// Tokens that stay exact, as in the caches for which the mix is.
    pub exact: ExactTokens,
    /// What these caches do with scores of coded keys.
    pub key_use: KeyUse,
    /// Tokens at the end of the text whose queries are asked.
    pub num_steps: usize,
}

impl SensitivitySettings {
    /// Refuses a text of `num_tokens` on which heads of `head_dim` cannot be measured, before the work of it.
    ///
    /// # Errors
    /// [`Error::ShortSample`] and [`Error::NoContinuation`] where too few tokens are coded or ask; what a format
    /// refuses, too few coded tokens for its tables among it.
    pub fn check(&self, head_dim: usize, num_tokens: usize) -> Result<()> {
        let tokens = self.exact.num_coded(num_tokens, self.num_steps)?;
        for format in &self.formats {
            let needed = format.layout(head_dim)?.min_fit_tokens;
            if tokens < needed {
                let format = format.to_string();
                Err(heterokv_quant::Error::TooFewTokens { format, tokens, needed })?;
            }
        }
        Ok(())
    }
}

/// What the scores of coded keys are for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyUse {
    /// They weigh values, of all tokens.
    Attend,
    /// They choose the tokens that exact keys re-score: those of the highest scores, as many as this selector
    /// takes under exact scores, shared by the query heads of a group.
    Select(Selector),
}

/// What each of some formats costs in each head of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    shape: KvShape,
    formats: Vec<KeyFormat>,
    /// `[num_layers, num_kv_heads, num_formats]`.
    costs: Vec<f64>,
}

/// Measures every format in every (layer, KV head) of `model` on a text, `tokens`; reports `(layers measured,
/// layers)`. Tables are fitted on the coded keys themselves.
///
/// # Errors
/// As [`SensitivitySettings::check`], before anything is computed; what the model refuses; and [`Error::Cost`].
pub fn measure_sensitivity(
    model: &Model,
    tokens: &[u32],
    settings: &SensitivitySettings,
    mut progress: Option<Progress<'_>>,
) -> Result<Sensitivity> {
    let shape = model.kv_shape();
    settings.check(shape.heads.head_dim, tokens.len())?;
    let mut costs = Vec::new();
    visit_layers(model, &[tokens], &mut |rows| {
        let group_len = shape.heads.group_size() * shape.heads.head_dim;
        let projection = model.output_projection(rows.layer).expect("a layer of this model");
        let columns = OutputColumns::of_heads(projection, group_len)?;
        let heads = columns.par_iter().enumerate().map(|(kv_head, columns)| {
            Probe { rows: &rows, kv_head, columns, level: model.level() }.costs(settings)
        });
        costs.extend(heads.collect::<Result<Vec<_>>>()?.concat());
        if let Some(progress) = &mut progress {
            progress(rows.layer + 1, shape.num_layers);
        }
        Ok(())
    })?;
    Ok(Sensitivity { shape, formats: settings.formats.clone(), costs })
}

impl Sensitivity {
    /// The share by which coding the keys of one head moves the residual stream behind its layer, squared,
    /// for each format in the order of the settings; 0 is no effect.
    ///
    /// # Panics
    /// When there is no such head.
    #[must_use]
    pub fn costs(&self, layer: usize, kv_head: usize) -> &[f64] {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        assert!(kv_head < num_kv_heads, "a KV head of the layer");
        let num_formats = self.formats.len();
        &self.costs[(layer * num_kv_heads + kv_head) * num_formats..][..num_formats]
    }

    /// A format for each head, `[num_layers, num_kv_heads]`, of least cost, with which the keys take at most
    /// `bits` per element at `num_tokens` coded tokens, the mean over all heads with scales and tables in it.
    ///
    /// # Errors
    /// [`Error::Quant`] where even the smallest formats take more, and where there are none.
    pub fn mix(&self, bits: f64, num_tokens: usize) -> Result<Vec<KeyFormat>> {
        let KvShape { num_layers, heads } = self.shape;
        // As the bits of a mix are counted; fractions of a byte in a head are left out.
        let elements_of_head = heads.head_dim as f64 * num_tokens as f64;
        let bytes = |format: &KeyFormat| {
            let bits = format.bits_per_element(heads.head_dim, num_tokens)?;
            Ok((bits * elements_of_head / 8.0 + 1e-6) as u64)
        };
        let bytes: Vec<u64> = self.formats.iter().map(bytes).collect::<Result<_>>()?;
        let num_heads = num_layers * heads.num_kv_heads;
        let candidates = (0..num_heads).map(|head| {
            let costs = self.costs(head / heads.num_kv_heads, head % heads.num_kv_heads);
            let pairs = bytes.iter().zip(costs);
            pairs.map(|(&bytes, &distortion)| Candidate { bytes, distortion }).collect()
        });
        let candidates: Vec<Vec<Candidate>> = candidates.collect();
        let budget = (bits * num_heads as f64 * elements_of_head / 8.0 + 1e-6) as u64;
        let chosen = choose(&candidates, budget)?;
        Ok(chosen.iter().map(|&index| self.formats[index]).collect())
    }
}

/// One head whose formats are measured.
struct Probe<'a> {
    rows: &'a LayerRows,
    kv_head: usize,
    columns: &'a OutputColumns,
    level: Level,
}

impl Probe<'_> {
    /// What each format costs.
    fn costs(&self, settings: &SensitivitySettings) -> Result<Vec<f64>> {
        let rows = &self.rows.heads[self.kv_head];
        let sample = HeadSample::split(rows, settings.exact, settings.num_steps)?;
        let exact = ExactAttention::of(&sample);
        let (precision, counts) = match &settings.key_use {
            KeyUse::Attend => (Precision::Exact, None),
            KeyUse::Select(selector) => (Precision::Select, Some(exact.taken(&sample, selector)?)),
        };
        let energies = &self.rows.residual_energy;
        let energies = &energies[energies.len() - settings.num_steps..];
        let cost = |&format: &KeyFormat| {
            let scores = self.scores(format, &sample, precision)?;
            let outputs = match &counts {
                None => exact.compare(&sample, &scores).outputs,
                Some(counts) => exact.selected(&sample, &scores, counts),
            };
            let steps = outputs.chunks_exact(rows.group_size * rows.head_dim).zip(energies);
            let sum: f64 =
                steps.map(|(error, energy)| self.columns.squared_length(error) / energy).sum();
            let (layer, kv_head) = (self.rows.layer, self.kv_head);
            let cost = sum / settings.num_steps as f64;
            if cost.is_finite() { Ok(cost) } else { Err(Error::Cost { format, layer, kv_head }) }
        };
        settings.formats.iter().map(cost).collect()
    }

    /// Scores `[num_queries, num_coded]` of a sample whose keys are coded; those that do not fill a group stay
    /// exact, as in a cache.
    fn scores(
        &self,
        format: KeyFormat,
        sample: &HeadSample,
        precision: Precision,
    ) -> Result<Vec<f32>> {
        let (head_dim, sm_scale) = (sample.head_dim(), sample.sm_scale());
        let (keys, queries) = (sample.keys(), sample.queries());
        let seed = (self.rows.layer as u64) << 32 | self.kv_head as u64;
        let input = FitInput {
            head_dim,
            keys,
            query_energy: sample.query_energy(),
            seed,
            level: self.level,
        };
        let coder = KeyCoder::fit(format, &input)?;
        let num_tokens = keys.len() / head_dim;
        let whole_groups = num_tokens / coder.layout().group_tokens * coder.layout().group_tokens;
        let (coded, rest) = keys.split_at(whole_groups * head_dim);
        let mut codes = vec![0; coder.layout().bytes(whole_groups)];
        coder.encode(self.level, 0, coded, &mut codes)?;
        let mut prepared = PreparedQueries::default();
        coder.prepare(queries, sm_scale, precision, &mut prepared);
        let mut scores = vec![0.0; queries.len() / head_dim * num_tokens];
        let out = ScoreRows { scores: &mut scores, stride: num_tokens, maxima: &mut [] };
        coder.score(self.level, &prepared, &codes, whole_groups, out);
        if !rest.is_empty() {
            let exact = exact_scores(head_dim, sm_scale, queries, rest);
            let rest = exact.chunks_exact(num_tokens - whole_groups);
            for (scores, rest) in scores.chunks_exact_mut(num_tokens).zip(rest) {
                let rest = rest.iter().map(|&score| score as f32);
                scores[whole_groups..].iter_mut().zip(rest).for_each(|(to, from)| *to = from);
            }
        }
        Ok(scores)
    }
}
