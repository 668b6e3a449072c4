//! The keys of the crate `turboquant-rs`, by its public interface and at its own count of bytes.
//!
//! It has two forms: the cache's, in which one bit of a coordinate goes to a sketch of the residual that makes
//! the estimate of q·k unbiased (`+ QJL`), and plain vectors without the sketch. Both store half-precision
//! norms; rotation and codebook are computed, not stored.

use ::turboquant::{QuantizedKVCache, TurboQuantConfig, dequantize_vec, quantize_vec};
use anyhow::{Result, ensure};
use heterokv_bench::quality::{CodedScores, HeadKeys, KeyCodec};

/// Every size of either form.
pub(crate) fn codecs() -> Vec<Box<dyn KeyCodec>> {
    let mut codecs: Vec<Box<dyn KeyCodec>> = Vec::new();
    for bits in [4, 3] {
        codecs.push(Box::new(Sketched { bits }));
    }
    for bits in [4, 3, 2] {
        codecs.push(Box::new(Plain { bits }));
    }
    codecs
}

/// As the crate's cache codes keys and scores queries against them.
struct Sketched {
    bits: u8,
}

impl KeyCodec for Sketched {
    fn name(&self) -> String {
        format!("turboquant-rs, {} bits + QJL", self.bits - 1)
    }

    fn scores(&self, head: &HeadKeys<'_>) -> Result<Option<CodedScores>> {
        let Some(config) = config(self.bits, head)? else { return Ok(None) };
        let seed = head.index as u64;
        let mut cache = QuantizedKVCache::new(config, 1, seed);
        let keys: Vec<&[f32]> = head.keys.chunks_exact(head.head_dim).collect();
        // The cache codes keys and values alike and together: given the keys as both, half its bytes are theirs.
        cache.push_batch(0, &keys, &keys)?;
        let mut scores = Vec::new();
        for query in head.queries.chunks_exact(head.head_dim) {
            let products = cache.attention_scores(0, query)?;
            ensure!(products.len() == keys.len(), "{}: a score per key", self.name());
            scores.extend(products.iter().map(|product| head.sm_scale * product));
        }
        let bits = 8.0 * cache.memory_usage() as f64 / 2.0;
        Ok(Some(CodedScores { bits_per_element: bits / head.keys.len() as f64, scores }))
    }
}

/// Vectors coded one by one.
struct Plain {
    bits: u8,
}

impl KeyCodec for Plain {
    fn name(&self) -> String {
        format!("turboquant-rs, {} bits", self.bits)
    }

    fn scores(&self, head: &HeadKeys<'_>) -> Result<Option<CodedScores>> {
        let Some(config) = config(self.bits, head)? else { return Ok(None) };
        let (mut num_bytes, mut decoded) = (0, Vec::with_capacity(head.keys.len()));
        for key in head.keys.chunks_exact(head.head_dim) {
            let block = quantize_vec(&config, key)?;
            num_bytes += block.size_bytes();
            decoded.extend(dequantize_vec(&config, &block)?);
        }
        Ok(Some(CodedScores {
            bits_per_element: 8.0 * num_bytes as f64 / head.keys.len() as f64,
            scores: head.scores_of(&decoded),
        }))
    }
}

/// `None` where the rotation does not hold rows of this length.
fn config(bits: u8, head: &HeadKeys<'_>) -> Result<Option<TurboQuantConfig>> {
    if !head.head_dim.is_power_of_two() {
        return Ok(None);
    }
    Ok(Some(TurboQuantConfig::new(bits, head.head_dim)?.with_seed(head.index as u64)))
}

#[cfg(test)]
mod tests {
    use heterokv_bench::synthetic;

    use super::*;

    #[test]
    fn bits_are_those_of_every_stored_byte_and_more_of_them_are_closer() {
        let rows = synthetic::head(1, 64, 1, 128);
        let head = HeadKeys {
            index: 3,
            head_dim: 64,
            keys: &rows.keys,
            query_energy: &[1.0; 64],
            queries: &rows.queries[..8 * 64],
            sm_scale: 0.125,
            profile: None,
        };
        let exact = head.scores_of(head.keys);
        let found = codecs().into_iter().map(|codec| {
            let coded = codec.scores(&head).unwrap().unwrap();
            let errors = coded.scores.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b));
            (coded.bits_per_element, errors.sum::<f32>())
        });
        let found: Vec<(f64, f32)> = found.collect();
        // Half-precision norms: one a vector, and one more for the residual of the sketch.
        let bits: Vec<f64> = found.iter().map(|(bits, _)| *bits).collect();
        assert_eq!(bits, [4.5, 3.5, 4.25, 3.25, 2.25]);
        assert!(found[0].1 < found[1].1 && found[2].1 < found[3].1 && found[3].1 < found[4].1);
        assert!(found[4].1 < exact.iter().map(|x| x * x).sum::<f32>());
    }
}
