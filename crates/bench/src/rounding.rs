//! How far the scores of a kernel may be from those of the decoded keys, beside the roundings of f32 sums.

use heterokv_quant::{KeyCoder, PreparedQueries};

/// The most by which the rounding of any of the first `num_heads` prepared queries moves a score of any token of
/// `codes`, whole blocks.
pub(crate) fn largest(
    coder: &KeyCoder,
    prepared: &PreparedQueries,
    num_heads: usize,
    codes: &[u8],
) -> f64 {
    let layout = coder.layout();
    let num_tokens = codes.len() / layout.block_bytes * layout.block_tokens;
    let all = (0..num_heads).flat_map(|head| (0..num_tokens).map(move |token| (head, token)));
    let roundings = all.map(|(head, token)| coder.rounding(prepared, head, codes, token));
    roundings.fold(0.0, |largest, rounding| largest.max(f64::from(rounding)))
}
