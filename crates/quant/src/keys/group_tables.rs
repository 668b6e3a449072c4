//! Queries as tables over the codebooks of product quantization, for kernels that sum their entries.

use half::f16;

use super::{KeyCoder, KeyFormat};

/// What the codes of product quantization come to under some queries, where a code takes more than a nibble.
///
/// A token's codes are a row of [`row_bytes`](Self::row_bytes), packed from the lowest bit up. The score of a token under
/// head h is the sum over groups g of `tables[h, g, code of g]`; `sm_scale` is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupTables {
    /// Groups of channels.
    pub num_groups: usize,
    /// Bits of a code, 5 to 12.
    pub code_bits: usize,
    /// `[num_heads, num_groups, 2^code_bits]`, f32.
    pub tables: Vec<f32>,
}

impl GroupTables {
    /// Bytes of a token's codes.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        (self.num_groups * self.code_bits).div_ceil(8)
    }
}

/// How a coder by product quantization turns queries into tables, as data for kernels that do it elsewhere.
///
/// ```text
/// x[i] = scale[i] · q[order[i]], then the rotation where there is one: Σ over j of rotation[j, i] · x[j]
/// tables[g, n] = Σ over the coordinates i of group g of x[i] · codebooks[g, n, i]
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GroupFrame {
    /// Coordinates of a group: 2, 4 or 8.
    pub width: usize,
    /// Bits of a code: 4 to 12. Codes of 4 bits lie in strips of planes, one for each group, without tails; others in
    /// rows, as [`GroupTables`] says.
    pub code_bits: usize,
    /// The channel of each coordinate, and what the query is multiplied by there `[head_dim]`.
    pub channels: Vec<(u16, f32)>,
    /// `[head_dim, head_dim]`; none where channels are coordinates.
    pub rotation: Option<Vec<f32>>,
    /// `[num_groups, 2^code_bits, width]`.
    pub codebooks: Vec<f16>,
}

impl KeyFormat {
    /// Whether coders of this format have a [frame of groups](KeyCoder::group_frame).
    #[must_use]
    pub fn has_group_frame(&self) -> bool {
        matches!(self, Self::Pq { num_exact: 0, .. })
    }
}

impl GroupFrame {
    /// The tables of `queries [num_heads, head_dim]`, by the formula alone `[num_heads, num_groups, 2^code_bits]`.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn tables(&self, queries: &[f32], sm_scale: f32) -> Vec<f32> {
        let head_dim = self.channels.len();
        assert!(queries.len().is_multiple_of(head_dim), "whole queries");
        let mut tables = Vec::new();
        for query in queries.chunks_exact(head_dim) {
            let scaled = self.channels.iter().map(|&(c, s)| sm_scale * s * query[usize::from(c)]);
            let mut x: Vec<f32> = scaled.collect();
            if let Some(rotation) = &self.rotation {
                let turned = |i| (0..head_dim).map(|j| rotation[j * head_dim + i] * x[j]).sum();
                x = (0..head_dim).map(turned).collect();
            }
            let groups = self.codebooks.chunks_exact(self.width << self.code_bits);
            for (codebook, x) in groups.zip(x.chunks_exact(self.width)) {
                let of =
                    |centroid: &[f16]| centroid.iter().zip(x).map(|(c, x)| c.to_f32() * x).sum();
                tables.extend(codebook.chunks_exact(self.width).map(of).collect::<Vec<f32>>());
            }
        }
        tables
    }
}

impl KeyCoder {
    /// How queries become tables over codebooks; none for other formats than product quantization without exact tokens.
    #[must_use]
    pub fn group_frame(&self) -> Option<GroupFrame> {
        self.codec.group_frame()
    }

    /// The tables of `queries [num_heads, head_dim]`, post-RoPE; none for other formats than product quantization of more
    /// than 16 centroids without exact tokens. A query that is not finite gives tables that are not.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn group_tables(&self, queries: &[f32], sm_scale: f32) -> Option<GroupTables> {
        assert!(queries.len().is_multiple_of(self.head_dim), "whole queries");
        let scaled: Vec<f32> = queries.iter().map(|q| q * sm_scale).collect();
        self.codec.group_tables(&scaled)
    }
}

#[cfg(test)]
mod tests {
    use crate::{FitInput, KeyCoder, Level};

    #[test]
    fn tables_score_what_the_decoder_decodes() {
        const HEAD_DIM: usize = 32;
        let keys: Vec<f32> = (0..520 * HEAD_DIM).map(|i| (i as f32 * 0.61).sin()).collect();
        let (level, energy) = (Level::detect(), [1.0; HEAD_DIM]);
        let input =
            FitInput { head_dim: HEAD_DIM, keys: &keys, query_energy: &energy, seed: 0, level };
        let queries: Vec<f32> = (0..2 * HEAD_DIM).map(|i| (i as f32 * 1.7).cos()).collect();
        let close = |a: &[f32], b: &[f32], name: &str| {
            assert_eq!(a.len(), b.len(), "{name}");
            let largest = b.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * largest), "{name}");
        };
        for (name, width, bits) in [("pq/4x256", 4, 8), ("opq/8x64", 8, 6), ("pq/2x32", 2, 5)] {
            let coder = KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
            assert!(coder.format().has_group_frame(), "{name}");
            let frame = coder.group_frame().unwrap();
            assert_eq!((frame.width, frame.code_bits), (width, bits), "{name}");
            let of_frame = frame.tables(&queries, 0.5);
            close(&of_frame, &coder.group_tables(&queries, 0.5).unwrap().tables, name);
            let mut codes = vec![0; coder.layout().bytes(8)];
            coder.encode(level, 0, &keys[..8 * HEAD_DIM], &mut codes).unwrap();
            let mut decoded = vec![0.0; 8 * HEAD_DIM];
            coder.decode(0, &codes, &mut decoded);
            let tables = coder.group_tables(&queries, 0.5).unwrap();
            assert_eq!((tables.num_groups, tables.code_bits), (HEAD_DIM / width, bits), "{name}");
            for (token, row) in codes.chunks_exact(tables.row_bytes()).enumerate() {
                for (head, query) in queries.chunks_exact(HEAD_DIM).enumerate() {
                    let code = |group: usize| {
                        let bit = |i| usize::from(row[i / 8] >> (i % 8) & 1);
                        (0..bits).map(|i| bit(group * bits + i) << i).sum::<usize>()
                    };
                    let first = head * tables.num_groups;
                    let entry = |group| ((first + group) << bits) + code(group);
                    let sum: f32 =
                        (0..tables.num_groups).map(|group| tables.tables[entry(group)]).sum();
                    let key = &decoded[token * HEAD_DIM..][..HEAD_DIM];
                    let exact: f32 = query.iter().zip(key).map(|(q, k)| 0.5 * q * k).sum();
                    assert!((sum - exact).abs() < 1e-4, "{name} {token}: {sum} and {exact}");
                }
            }
        }
        for name in ["pq/4x16", "opq/8x16"] {
            let coder = KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
            let planes = coder.plane_tables(&queries, 0.5).unwrap();
            close(&coder.group_frame().unwrap().tables(&queries, 0.5), &planes.tables, name);
            assert!(planes.finals.iter().all(|of_head| *of_head == [0.0; 4]), "{name}");
        }
        for name in ["pq/4x16", "pq/4x256+x1", "int8-token"] {
            let coder = KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
            assert_eq!(coder.group_tables(&queries, 0.5), None, "{name}");
            assert_eq!(coder.group_frame().is_some(), name == "pq/4x16", "{name}");
            assert_eq!(coder.format().has_group_frame(), name == "pq/4x16", "{name}");
        }
    }
}
