//! Tables fitted on a text in pieces, and the keys that they are fitted on.
//!
//! A model has a longest context, and formats with large tables want more tokens than that. So a text is cut into
//! pieces, each a prompt of its own with positions from 0 on, as every context has them: tables of post-RoPE keys
//! then know the positions of one piece, each of them as many times as there are pieces.

use heterokv_cache::{Keys, KvShape, Profile};
use heterokv_model::{Model, Progress};
use heterokv_quant::{FitInput, KeyCoder};
use rayon::prelude::*;

use crate::heads::{relative_energy, visit_layers};
use crate::{Error, Result};

/// What tables are fitted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Tokens of a piece; the last one may have fewer.
    pub tokens: usize,
    /// First tokens of each, which caches keep exact and tables need not know.
    pub sinks: usize,
}

/// What the tables of one (layer, KV head) are fitted on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FitRows {
    /// Keys `[n, head_dim]`, post-RoPE, f32: those of all pieces one after the other, without their sinks.
    pub keys: Vec<f32>,
    /// Mean of q² per channel `[head_dim]` over the queries of a piece, over its mean; the mean over all pieces.
    pub query_energy: Vec<f32>,
}

impl Pieces {
    /// Tokens whose keys tables are fitted on, of a text of `num_tokens`.
    fn num_fitted(self, num_tokens: usize) -> usize {
        let of_piece = |tokens: usize| tokens.saturating_sub(self.sinks);
        let whole = num_tokens.checked_div(self.tokens).unwrap_or(0);
        whole * of_piece(self.tokens) + of_piece(num_tokens - whole * self.tokens)
    }

    /// Refuses a text of `num_tokens` that is too short for the tables of `keys` in any head of a model of
    /// `shape`, before the work of fitting them.
    ///
    /// # Errors
    /// [`Error::ShortPieces`] and [`Error::ShortProfile`], a mix of another shape, and a format's refusal of the
    /// `head_dim`.
    pub fn check(self, keys: &Keys, shape: &KvShape, num_tokens: usize) -> Result<()> {
        self.check_len()?;
        let num_fitted = self.num_fitted(num_tokens);
        for format in keys.formats(shape)? {
            let needed = format.layout(shape.heads.head_dim)?.min_fit_tokens.max(1);
            if num_fitted < needed {
                return Err(Error::ShortProfile {
                    num_tokens,
                    pieces: self,
                    num_fitted,
                    format,
                    needed,
                });
            }
        }
        Ok(())
    }

    fn check_len(self) -> Result<()> {
        if self.tokens > self.sinks { Ok(()) } else { Err(Error::ShortPieces { pieces: self }) }
    }
}

/// Runs `tokens` through the model in pieces and gives `visit` each layer with what the tables of its heads,
/// `[num_kv_heads]`, are fitted on; rows of one layer exist at a time. After an error of `visit` it is not called
/// again. No tokens: no visit.
///
/// # Errors
/// [`Error::ShortPieces`], as [`Model::observe`], and the error of `visit`.
pub fn visit_fit_rows(
    model: &Model,
    tokens: &[u32],
    pieces: Pieces,
    visit: &mut dyn FnMut(usize, Vec<FitRows>) -> Result<()>,
) -> Result<()> {
    pieces.check_len()?;
    let texts: Vec<&[u32]> = tokens.chunks(pieces.tokens).collect();
    let heads = model.kv_shape().heads;
    let empty = || {
        let query_energy = vec![0.0; heads.head_dim];
        vec![FitRows { keys: Vec::new(), query_energy }; heads.num_kv_heads]
    };
    let mut gathered = empty();
    visit_layers(model, &texts, &mut |rows| {
        for (to, from) in gathered.iter_mut().zip(&rows.heads) {
            let behind = from.keys.get(pieces.sinks * heads.head_dim..);
            to.keys.extend_from_slice(behind.unwrap_or_default());
            let energy = relative_energy(&from.queries, heads.head_dim);
            to.query_energy.iter_mut().zip(energy).for_each(|(to, from)| *to += from);
        }
        if rows.text + 1 < texts.len() {
            return Ok(());
        }
        for head in &mut gathered {
            head.query_energy.iter_mut().for_each(|energy| *energy /= texts.len() as f32);
        }
        visit(rows.layer, std::mem::replace(&mut gathered, empty()))
    })
}

/// Fits the tables of `keys` in every head on `tokens` in pieces, for the model of `fingerprint`; reports `(layers
/// fitted, layers)`.
///
/// Besides the model and the tables it holds the hidden states of all tokens and the keys of one layer: of 32,768
/// tokens of SmolLM2-135M 75 MB and 25 MB, where the keys of all layers would take 755 MB.
///
/// # Errors
/// As [`Pieces::check`], before anything is computed; as [`Model::observe`]; and keys that are not finite.
pub fn fit_profile(
    model: &Model,
    tokens: &[u32],
    pieces: Pieces,
    keys: &Keys,
    fingerprint: &str,
    mut progress: Option<Progress<'_>>,
) -> Result<Profile> {
    let shape = model.kv_shape();
    pieces.check(keys, &shape, tokens.len())?;
    let formats = keys.formats(&shape)?;
    let mut coders = Vec::with_capacity(formats.len());
    visit_fit_rows(model, tokens, pieces, &mut |layer, rows| {
        let formats = &formats[layer * rows.len()..];
        let fitted = rows.par_iter().zip(formats).enumerate().map(|(kv_head, (rows, &format))| {
            let input = FitInput {
                head_dim: shape.heads.head_dim,
                keys: &rows.keys,
                query_energy: &rows.query_energy,
                seed: (layer as u64) << 32 | kv_head as u64,
                level: model.level(),
            };
            Ok(KeyCoder::fit(format, &input)?)
        });
        coders.extend(fitted.collect::<Result<Vec<_>>>()?);
        if let Some(progress) = &mut progress {
            progress(layer + 1, shape.num_layers);
        }
        Ok(())
    })?;
    Ok(Profile::new(fingerprint, &shape, coders)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fitted_on_is_every_piece_without_its_sinks() {
        let pieces = Pieces { tokens: 10, sinks: 4 };
        for (num_tokens, fitted) in [(0, 0), (4, 0), (5, 1), (10, 6), (14, 6), (15, 7), (40, 24)] {
            assert_eq!(pieces.num_fitted(num_tokens), fitted, "{num_tokens}");
        }
        assert_eq!(Pieces { tokens: usize::MAX, sinks: 4 }.num_fitted(100), 96);
    }
}
