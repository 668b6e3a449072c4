//! The keys and values of a prompt as its blocks of queries read them.

use heterokv_quant::Level;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::HeadShape;
use crate::simd::pack::{HeadRows, pack_keys, pack_values};
use crate::simd::strip::{KEY_LANES, Tile, VALUE_LANES};

/// Tokens of a tile. Measured with the example `prefill_speed`.
pub(super) const TILE_TOKENS: usize = 8 * KEY_LANES;

/// Tiles of keys and values, packed once for all blocks.
#[derive(Clone, Debug)]
pub(super) struct PackedRows {
    head_dim: usize,
    num_tiles: usize,
    /// `[num_kv_heads, num_tiles]` of [`Tile::keys`]; lanes beyond the last token are zero.
    keys: Vec<f32>,
    /// `[num_kv_heads, num_tiles]` of [`Tile::values`]; so are tokens beyond the last.
    values: Vec<f32>,
}

impl PackedRows {
    /// Of the keys and values `[num_tokens, num_kv_heads, head_dim]`; no tokens give no tiles.
    pub(super) fn new(level: Level, shape: &HeadShape, k: &[f32], v: &[f32]) -> Self {
        let HeadShape { num_kv_heads, head_dim, .. } = *shape;
        let stride = shape.kv_row_len();
        let all_tokens = k.len() / stride;
        let num_tiles = all_tokens.div_ceil(TILE_TOKENS);
        let key_len = TILE_TOKENS * head_dim;
        let value_len = TILE_TOKENS * head_dim.next_multiple_of(VALUE_LANES);
        let mut keys = vec![0.0; num_kv_heads * num_tiles * key_len];
        let mut values = vec![0.0; num_kv_heads * num_tiles * value_len];
        let tiles = keys.par_chunks_exact_mut(key_len).zip(values.par_chunks_exact_mut(value_len));
        tiles.enumerate().for_each(|(tile, (keys, values))| {
            let (kv_head, first) = (tile / num_tiles, tile % num_tiles * TILE_TOKENS);
            let start = first * stride + kv_head * head_dim;
            let num_tokens = TILE_TOKENS.min(all_tokens - first);
            let rows = HeadRows { start, stride, head_dim, num_tokens };
            pack_keys(level, rows, k, keys);
            pack_values(rows, v, TILE_TOKENS, values);
        });
        Self { head_dim, num_tiles, keys, values }
    }

    /// Tokens from `tile * TILE_TOKENS` on of one KV head.
    pub(super) fn tile(&self, kv_head: usize, tile: usize) -> Tile<'_> {
        let key_len = TILE_TOKENS * self.head_dim;
        let value_len = TILE_TOKENS * self.head_dim.next_multiple_of(VALUE_LANES);
        let index = kv_head * self.num_tiles + tile;
        Tile {
            head_dim: self.head_dim,
            capacity: TILE_TOKENS,
            keys: &self.keys[index * key_len..][..key_len],
            values: &self.values[index * value_len..][..value_len],
        }
    }
}
