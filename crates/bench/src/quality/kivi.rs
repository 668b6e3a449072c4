//! KIVI's keys (arXiv 2402.02750): affine integers per channel over groups of 32 tokens, minimum and scale in
//! half precision. Written from the paper, without a line of our own formats, as a peer and as a check on them.

use anyhow::Result;
use half::f16;

use super::{CodedScores, HeadKeys, KeyCodec};

/// Tokens that share a minimum and a scale.
const GROUP_TOKENS: usize = 32;

pub(super) struct Kivi {
    pub(super) bits: u8,
}

impl KeyCodec for Kivi {
    fn name(&self) -> String {
        format!("KIVI, {} bits", self.bits)
    }

    fn scores(&self, head: &HeadKeys<'_>) -> Result<Option<CodedScores>> {
        if !(head.keys.len() / head.head_dim).is_multiple_of(GROUP_TOKENS) {
            return Ok(None);
        }
        let mut decoded = head.keys.to_vec();
        for group in decoded.chunks_exact_mut(GROUP_TOKENS * head.head_dim) {
            for channel in 0..head.head_dim {
                self.round_trip(group.iter_mut().skip(channel).step_by(head.head_dim).collect());
            }
        }
        Ok(Some(CodedScores {
            bits_per_element: f64::from(self.bits) + 2.0 * 16.0 / GROUP_TOKENS as f64,
            scores: head.scores_of(&decoded),
        }))
    }
}

impl Kivi {
    /// Replaces one channel of a group by what its codes mean.
    fn round_trip(&self, mut values: Vec<&mut f32>) {
        let half = |x: f32| f16::from_f32(x).to_f32();
        values.iter_mut().for_each(|x| **x = half(**x));
        let low = values.iter().map(|x| **x).fold(f32::INFINITY, f32::min);
        let high = values.iter().map(|x| **x).fold(f32::NEG_INFINITY, f32::max);
        let steps = f32::from((1u16 << self.bits) - 1);
        let scale = half((high - low) / steps);
        for x in values {
            let code =
                if scale > 0.0 { ((*x - low) / scale).clamp(0.0, steps).round() } else { 0.0 };
            *x = low + scale * code;
        }
    }
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;
    use heterokv_testkit::normalised_mean_square_error;

    use super::*;
    use crate::quality::DataSet;
    use crate::quality::ours::{OurCodec, Tables};

    #[test]
    fn its_error_is_that_of_our_format_of_the_same_definition() {
        let data = DataSet::synthetic(1, 256, 4).expect("it is small");
        let head = data.heads[0].as_keys();
        let exact = head.dot_products(head.queries, head.keys);
        // Our narrower codes hold their steps in fewer bytes than KIVI does.
        for (bits, name) in [(8, "int8-channel/32"), (6, "int6-channel/32")] {
            let format = name.parse().expect("it is a format");
            let ours = OurCodec { format, tables: Tables::Own, level: Level::SCALAR };
            let error = |codec: &dyn KeyCodec| {
                let coded = codec.scores(&head).expect("it codes").expect("it holds the shape");
                (coded.bits_per_element, normalised_mean_square_error(&coded.scores, &exact))
            };
            let ((kivi_bits, kivi), (our_bits, ours)) = (error(&Kivi { bits }), error(&ours));
            assert_eq!(kivi_bits, our_bits);
            assert!((kivi / ours - 1.0).abs() < 0.03, "{name}: {kivi} and {ours}");
        }
    }
}
