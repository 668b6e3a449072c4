//! What a score is summed from: larger than the score where its terms cancel.

use super::codes::TokenCodes;
use super::*;
use crate::affine::Group;
use crate::grouped::Grouped;
use crate::simd::keys::Values;

/// For each token the length of the vector of what its channels are summed from, in the frame that the format
/// scores in: a zero or centre, and as much as any code stands for beside it, since sums of table entries
/// begin at the least of them. The keys are `decoded [n, head_dim]` from `codes`.
pub(super) fn sizes(coder: &KeyCoder, codes: &[u8], decoded: &[f32]) -> Vec<f64> {
    let head_dim = coder.head_dim;
    let tables = coder.tables();
    let table = |name| -> Vec<f64> { table(&tables, name).iter().map(|x| x.to_f64()).collect() };
    let largest = |bits: f64| bits.exp2() - 1.0;
    let tokens = 0..decoded.len() / head_dim;
    let key = |token| decoded[token * head_dim..][..head_dim].iter().map(|&x| f64::from(x));
    match coder.format() {
        KeyFormat::F16 | KeyFormat::Bf16 | KeyFormat::Fp8 => {
            tokens.map(|token| norm(key(token))).collect()
        }
        KeyFormat::LloydMax { bits } | KeyFormat::LloydMaxPlain { bits } => {
            let is_plain = coder.format() == KeyFormat::LloydMaxPlain { bits };
            let centre = if is_plain { 0.0 } else { norm(table("centre").into_iter()) };
            let levels = Values::Levels([0.0; 16]);
            let codec = TokenCodes::new(vec![bits; head_dim / 8], levels, Tail::Scale);
            // No level is above 2.8, and they lie on both sides of 0.
            let levels = 2.0 * 2.8 * (head_dim as f64).sqrt();
            tokens.map(|token| centre + levels * tail(&codec, codes, token).0.abs()).collect()
        }
        KeyFormat::Alloc { .. } => {
            let (step, widths) = (table("step"), table("widths"));
            let chunks = widths.iter().map(|&bits| bits as u8).collect();
            let codec = TokenCodes::new(chunks, Values::Integer, Tail::Exponent);
            // Codes are relative to their middle.
            let reach = norm((0..head_dim).map(|i| 1.5 * step[i] * largest(widths[i / 8])));
            let centre = norm(table("centre").into_iter());
            tokens.map(|token| centre + reach * tail(&codec, codes, token).0).collect()
        }
        KeyFormat::Pq { width, .. } => {
            let (codebooks, weights) = (table("codebooks"), table("weights"));
            let width = usize::from(width);
            let groups = codebooks.chunks(codebooks.len() / (head_dim / width));
            let longest = |group: &[f64]| {
                group.chunks(width).map(|x| norm(x.iter().copied())).fold(0.0, f64::max)
            };
            let centroids = 2.0 * norm(groups.map(longest));
            let own = |token| norm(key(token).zip(&weights).map(|(x, weight)| x * weight));
            tokens.map(|token| centroids + own(token)).collect()
        }
        format => {
            let of_token = |token| {
                let terms = lines(format.unrotated(), head_dim, codes, token).into_iter();
                norm(
                    terms
                        .map(|(scale, zero, bits)| zero.abs() + scale.abs() * largest(bits.into())),
                )
            };
            tokens.map(of_token).collect()
        }
    }
}

/// Scale, zero and bits of the channels of a token of an affine format.
fn lines(format: KeyFormat, head_dim: usize, codes: &[u8], token: usize) -> Vec<(f64, f64, u8)> {
    let group = |headers: &[u8], bits: u8, group: usize| {
        let len = Group::header_bytes(bits);
        let (scale, zero) = Group::read(&headers[group * len..][..len], bits).line();
        (scale.into(), zero.into(), bits)
    };
    match format {
        KeyFormat::IntToken { bits } => {
            let widths = vec![bits; head_dim / 8];
            let codec = TokenCodes::new(widths, Values::Integer, Tail::ScaleZero);
            let (scale, zero) = tail(&codec, codes, token);
            vec![(scale, zero, bits); head_dim]
        }
        KeyFormat::IntTokenGroups { bits, group: size } => {
            let rows = Grouped::new(bits, head_dim, size);
            let headers = &codes[token * rows.num_bytes()..][rows.code_bytes()..];
            (0..head_dim).map(|c| group(headers, bits, c / size.channels())).collect()
        }
        KeyFormat::IntChannel { bits, group_tokens } => {
            let block_bytes = format.layout(head_dim).unwrap().block_bytes;
            let headers = &codes[token / usize::from(group_tokens) * block_bytes..];
            (0..head_dim).map(|c| group(headers, bits, c)).collect()
        }
        _ => unreachable!("{format} is not affine"),
    }
}

/// Scale and zero of a token.
fn tail(codec: &TokenCodes, codes: &[u8], token: usize) -> (f64, f64) {
    let (scale, zero) = codec.read(codes, token, &mut vec![0; codec.head_dim()]);
    (scale.into(), zero.into())
}

pub(super) fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}
