//! What errors of a KV head's attention outputs add to the residual stream.

use heterokv_quant::weights::WeightMatrix;

use crate::Result;

/// The columns of an output projection that one KV head's query group is multiplied with, as their inner
/// products: with W of those columns, |W·x|² = xᵀ (Wᵀ W) x.
#[derive(Clone, Debug)]
pub(crate) struct OutputColumns {
    group_len: usize,
    /// Wᵀ W `[group_len, group_len]`.
    products: Vec<f64>,
}

impl OutputColumns {
    /// Of every KV head of a layer whose outputs are multiplied with `projection [hidden_size, num_kv_heads ·
    /// group_len]`.
    ///
    /// # Errors
    /// None where the projection is of that shape.
    pub(crate) fn of_heads(projection: &WeightMatrix, group_len: usize) -> Result<Vec<Self>> {
        let empty = Self { group_len, products: vec![0.0; group_len * group_len] };
        let mut heads = vec![empty; projection.cols() / group_len];
        let mut row = vec![0.0; projection.cols()];
        for index in 0..projection.rows() {
            projection.row(index, &mut row)?;
            for (head, row) in heads.iter_mut().zip(row.chunks_exact(group_len)) {
                for (products, &a) in head.products.chunks_exact_mut(group_len).zip(row) {
                    for (product, &b) in products.iter_mut().zip(row) {
                        *product += f64::from(a) * f64::from(b);
                    }
                }
            }
        }
        Ok(heads)
    }

    /// |W·x|² of an error `x [group_len]` of the group's outputs.
    pub(crate) fn squared_length(&self, x: &[f64]) -> f64 {
        let rows = self.products.chunks_exact(self.group_len).zip(x);
        rows.map(|(row, a)| a * row.iter().zip(x).map(|(product, b)| product * b).sum::<f64>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;
    use heterokv_quant::weights::{ComputeType, TensorType};

    use super::*;

    #[test]
    fn lengths_are_those_of_the_product() {
        // Two KV heads with groups of three values, into five.
        let weights: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin()).collect();
        let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        let matrix = WeightMatrix::from_tensor(
            TensorType::F32,
            &bytes,
            [5, 6],
            |row| row,
            ComputeType::F32,
            Level::SCALAR,
        );
        let heads = OutputColumns::of_heads(&matrix.unwrap(), 3).unwrap();
        assert_eq!(heads.len(), 2);
        let x = [0.5, -2.0, 1.25];
        for (head, columns) in heads.iter().enumerate() {
            let product = weights.chunks_exact(6).map(|row| -> f64 {
                row[3 * head..][..3].iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()
            });
            let expected: f64 = product.map(|y| y * y).sum();
            assert!((columns.squared_length(&x) - expected).abs() < 1e-12 && expected > 0.1);
            assert_eq!(columns.squared_length(&[0.0; 3]), 0.0);
        }
    }
}
