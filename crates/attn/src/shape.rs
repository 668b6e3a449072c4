//! The heads of one attention layer.

use crate::AttnError;

/// Heads, channels and scale of one layer's attention.
///
/// Query heads `g * group_size .. (g + 1) * group_size` share KV head `g` (grouped-query attention;
/// Ainslie et al., arXiv 2305.13245). One query head per KV head is multi-head attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    /// Query (and output) heads, a multiple of `num_kv_heads`.
    pub num_qo_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Channels per head, of queries, keys and values alike.
    pub head_dim: usize,
    /// What q·k is multiplied by before the softmax, usually `1 / sqrt(head_dim)`.
    pub sm_scale: f32,
}

impl HeadShape {
    /// A checked shape with the usual scale, `1 / sqrt(head_dim)`.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadShape`].
    pub fn new(
        num_qo_heads: usize,
        num_kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, AttnError> {
        let sm_scale = 1.0 / (head_dim.max(1) as f32).sqrt();
        let shape = Self { num_qo_heads, num_kv_heads, head_dim, sm_scale };
        shape.check()?;
        Ok(shape)
    }

    /// Checks a shape that was written out field by field.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadShape`] and [`AttnError::SmScale`].
    pub fn check(&self) -> Result<(), AttnError> {
        let Self { num_qo_heads, num_kv_heads, head_dim, sm_scale } = *self;
        let whole = num_kv_heads > 0
            && head_dim > 0
            && num_qo_heads > 0
            && num_qo_heads.is_multiple_of(num_kv_heads)
            && num_qo_heads.checked_mul(head_dim).is_some();
        if !whole {
            return Err(AttnError::HeadShape { num_qo_heads, num_kv_heads, head_dim });
        }
        if !(sm_scale.is_finite() && sm_scale > 0.0) {
            return Err(AttnError::SmScale { sm_scale });
        }
        Ok(())
    }

    /// Query heads per KV head.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.num_qo_heads / self.num_kv_heads
    }

    /// Elements of one token's queries or outputs, `[num_qo_heads, head_dim]`.
    #[must_use]
    pub fn qo_row_len(&self) -> usize {
        self.num_qo_heads * self.head_dim
    }

    /// Elements of one token's keys or values, `[num_kv_heads, head_dim]`.
    #[must_use]
    pub fn kv_row_len(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}
