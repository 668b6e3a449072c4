//! The rotary embedding's frequencies under the scalings that published checkpoints use.
//!
//! A pair of elements i of a head turns by `position * inverse_frequency[i]`, where unscaled
//! `inverse_frequency[i] = theta^(-2i / head_dim)`. Long-context variants change these numbers and,
//! for YaRN, multiply cosine and sine by a constant.

use std::f64::consts::TAU;
use std::fmt;

use crate::{config::invalid, error::Result};

/// The base and how it was stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies, above 1.
    pub theta: f64,
    /// What was done to the frequencies for longer contexts.
    pub scaling: RopeScaling,
}

/// Context extension by changed frequencies. Every factor is finite and above 0.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided (position interpolation, Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a linear blend between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Turns within the original context up to which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original context from which a frequency is high; above the other.
        high_freq_factor: f64,
        /// The context before the extension.
        original_context_tokens: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// The context before the extension.
        original_context_tokens: usize,
        /// Turns within the original context from which a frequency is kept.
        beta_fast: f64,
        /// Turns within the original context up to which a frequency is fully divided.
        beta_slow: f64,
        /// What cosine and sine are multiplied by.
        attention_factor: f64,
        /// Whether the ends of the blend are rounded outwards to whole pairs, as is usual.
        truncate: bool,
    },
    /// One divisor for each pair, `[head_dim / 2]`: the `rope_freqs.weight` of GGUF files, which is
    /// how these state Llama 3.1's scaling.
    Factors(Vec<f32>),
}

impl fmt::Display for RopeConfig {
    /// In words: `theta 500000, llama3 by 8 of 8192 tokens, low 1, high 4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "theta {}", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => write!(f, ", linear by {factor}"),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_tokens,
            } => write!(
                f,
                ", llama3 by {factor} of {original_context_tokens} tokens, low {low_freq_factor}, high {high_freq_factor}"
            ),
            RopeScaling::Yarn {
                factor,
                original_context_tokens,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                let rounding = if *truncate { "whole" } else { "exact" };
                write!(
                    f,
                    ", yarn by {factor} of {original_context_tokens} tokens, fast {beta_fast}, slow {beta_slow}, \
                     attention {attention_factor}, {rounding} ends"
                )
            }
            RopeScaling::Factors(factors) => {
                let (least, most) = factors
                    .iter()
                    .fold((f32::INFINITY, 0f32), |(least, most), &x| (least.min(x), most.max(x)));
                write!(f, ", divided by {} factors from {least} to {most}", factors.len())
            }
        }
    }
}

impl RopeScaling {
    /// YaRN's usual factor on cosine and sine, `0.1 · mscale · ln(factor) + 1`; 1 where nothing is
    /// stretched.
    pub(crate) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }
}

impl RopeConfig {
    /// The angle per position of each pair, `[head_dim / 2]`, f32; computed in f64.
    ///
    /// # Panics
    /// When the scaling is [`RopeScaling::Factors`] of another length than `head_dim / 2`, which no
    /// validated configuration has.
    #[must_use]
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let num_pairs = head_dim / 2;
        let unscaled =
            (0..num_pairs).map(|pair| self.theta.powf(-((2 * pair) as f64) / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => unscaled.map(|freq| freq as f32).collect(),
            RopeScaling::Linear { factor } => unscaled.map(|freq| (freq / factor) as f32).collect(),
            RopeScaling::Factors(factors) => {
                assert_eq!(factors.len(), num_pairs, "one factor for each pair");
                unscaled.zip(factors).map(|(freq, &by)| (freq / f64::from(by)) as f32).collect()
            }
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_tokens,
            } => unscaled
                .map(|freq| {
                    let turns = original_context_tokens as f64 * freq / TAU;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    ((1.0 - kept) * freq / factor + kept * freq) as f32
                })
                .collect(),
            &RopeScaling::Yarn {
                factor,
                original_context_tokens,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                // The pair, as a real number, that makes `turns` turns within the original context.
                let pair_of = |turns: f64| {
                    let wavelength_ratio = original_context_tokens as f64 / (turns * TAU);
                    head_dim as f64 * wavelength_ratio.ln() / (2.0 * self.theta.ln())
                };
                let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                // The bound is the last element, not the last pair; all implementations share this.
                (first, last) = (first.max(0.0), last.min(head_dim as f64 - 1.0));
                if first == last {
                    last += 0.001;
                }
                unscaled
                    .enumerate()
                    .map(|(pair, freq)| {
                        let divided = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                        (freq / factor * divided + freq * (1.0 - divided)) as f32
                    })
                    .collect()
            }
        }
    }

    /// What cosine and sine are multiplied by: 1 except for YaRN.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// The context the scaling was made for, where the checkpoint states `max_positions`.
    ///
    /// Published YaRN configurations keep the original length in `max_position_embeddings` and the
    /// stretch in the factor; the other scalings state the stretched length.
    pub(crate) fn scaled_context_tokens(&self, max_positions: usize) -> usize {
        match self.scaling {
            // A float cast saturates, and validation bounds the result.
            RopeScaling::Yarn { factor, original_context_tokens, .. } => {
                max_positions.max((original_context_tokens as f64 * factor) as usize)
            }
            _ => max_positions,
        }
    }

    /// Checks the rules written at the fields.
    pub(crate) fn validate(&self, head_dim: usize) -> Result<()> {
        if !(self.theta > 1.0 && self.theta.is_finite()) {
            return Err(invalid("RoPE theta", self.theta, "above 1 and finite".to_owned()));
        }
        let positive = |key: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                return Ok(());
            }
            Err(invalid(&format!("RoPE {key}"), value, "above 0 and finite".to_owned()))
        };
        match &self.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("factor", *factor)?,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_tokens,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                positive("original context", *original_context_tokens as f64)?;
                if high_freq_factor <= low_freq_factor {
                    let rule = format!("above the {low_freq_factor} of low_freq_factor");
                    return Err(invalid("RoPE high_freq_factor", high_freq_factor, rule));
                }
            }
            RopeScaling::Yarn {
                factor,
                original_context_tokens,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate: _,
            } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", *attention_factor)?;
                positive("original context", *original_context_tokens as f64)?;
                if beta_fast < beta_slow {
                    let rule = format!("at least the {beta_slow} of beta_slow");
                    return Err(invalid("RoPE beta_fast", beta_fast, rule));
                }
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != head_dim / 2 {
                    let rule = format!("one for each of the {} pairs of a head", head_dim / 2);
                    return Err(invalid("number of RoPE factors", factors.len(), rule));
                }
                for &factor in factors {
                    positive("factor of rope_freqs.weight", f64::from(factor))?;
                }
            }
        }
        Ok(())
    }
}
