//! Queries against the codebooks of product quantization on a device.

use bytemuck::{Pod, Zeroable};
use heterokv_quant::GroupFrame;
use heterokv_shaders as shaders;

use super::{DeviceError, DeviceResult, Launch, Operand, check_len, word};
use crate::HeadShape;

const NAME: &str = "group_tables";

/// Groups of coordinates that a workgroup makes tables of.
const GROUPS: usize = 4;

/// Bits of a code of product quantization.
const CODE_BITS: std::ops::RangeInclusive<usize> = 4..=12;

/// What a frame of groups knows of a coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Coordinate {
    /// Its channel.
    pub order: u32,
    /// What the query is multiplied by there.
    pub scale: f32,
}

/// The tables of [`ScoreGroups`](super::ScoreGroups), and those of [`ScorePlanes`](super::ScorePlanes) of codes of 4 bits,
/// made of queries by the [`GroupFrame`]s of their coders.
#[derive(Clone, Copy, Debug)]
pub struct GroupTables<B> {
    /// The heads of the layer.
    pub shape: HeadShape,
    /// KV heads whose tables are made, in an order of their own.
    pub num_heads: usize,
    /// [`GroupFrame::width`], the same for each of them.
    pub width: usize,
    /// [`GroupFrame::code_bits`].
    pub code_bits: usize,
    /// Whether the frames have a rotation.
    pub is_rotated: bool,
    /// Which KV heads `[num_heads]`, u32.
    pub kv_heads: B,
    /// [`Coordinate`] `[num_heads, head_dim]`.
    pub coordinates: B,
    /// [`GroupFrame::rotation`] `[num_heads, head_dim, head_dim]`, f32; a word where there is none.
    pub rotation: B,
    /// [`GroupFrame::codebooks`] `[num_heads, num_groups, 2^code_bits, width]`, f16.
    pub codebooks: B,
    /// Post-RoPE queries `[num_qo_heads, head_dim]`, f32.
    pub q: B,
    /// `[num_heads, group_size, num_groups, 2^code_bits]`, f32.
    pub tables: B,
    /// `[num_heads, group_size, 4]`, f32: zeros, which these scores end with.
    pub finals: B,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GroupTablesParams {
    head_dim: u32,
    group_size: u32,
    width: u32,
    num_centroids: u32,
    is_rotated: u32,
    sm_scale: f32,
}

impl Coordinate {
    /// Those of a frame, as the kernel reads them.
    pub fn all_of(frame: &GroupFrame) -> impl Iterator<Item = Self> {
        frame.channels.iter().map(|&(order, scale)| Self { order: order.into(), scale })
    }
}

impl<B: Operand> GroupTables<B> {
    /// What runs. Which KV heads and channels are named is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for groups of other than 2, 4 or 8 coordinates and for codes of
    /// other than 4 to 12 bits.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        let Self { num_heads, width, code_bits, is_rotated, .. } = *self;
        let HeadShape { num_qo_heads, head_dim, sm_scale, .. } = self.shape;
        if !matches!(width, 2 | 4 | 8) || !head_dim.is_multiple_of(width) {
            let (what, value) = ("coordinates of a group", width as u64);
            let remedy = "it is made for 2, 4 or 8, of whole groups";
            return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
        }
        if !CODE_BITS.contains(&code_bits) {
            let (what, value) = ("bits of a code", code_bits as u64);
            let remedy = "it is made for 4 to 12";
            return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
        }
        let num_queries = num_heads * self.shape.group_size();
        let num_groups = head_dim / width;
        let entries = (num_groups as u64) << code_bits;
        let rotation_len = if is_rotated { num_heads * head_dim * head_dim } else { 1 };
        check_len(NAME, "kv_heads", &self.kv_heads, num_heads as u64)?;
        check_len(NAME, "coordinates", &self.coordinates, (2 * num_heads * head_dim) as u64)?;
        check_len(NAME, "rotation", &self.rotation, rotation_len as u64)?;
        let half_words = num_heads as u64 * entries * width as u64 / 2;
        check_len(NAME, "codebooks", &self.codebooks, half_words)?;
        check_len(NAME, "q", &self.q, (num_qo_heads * head_dim) as u64)?;
        check_len(NAME, "tables", &self.tables, num_queries as u64 * entries)?;
        check_len(NAME, "finals", &self.finals, 4 * num_queries as u64)?;
        let params = GroupTablesParams {
            head_dim: word(NAME, "head_dim", head_dim as u64)?,
            group_size: word(NAME, "group_size", self.shape.group_size() as u64)?,
            width: width as u32,
            num_centroids: 1 << code_bits,
            is_rotated: u32::from(is_rotated),
            sm_scale,
        };
        let Self { kv_heads, coordinates, rotation, codebooks, q, tables, finals, .. } = *self;
        let buffers = [kv_heads, coordinates, rotation, codebooks, q, tables, finals];
        let grid = [
            word(NAME, "groups", num_groups.div_ceil(GROUPS) as u64)?,
            word(NAME, "queries", num_queries as u64)?,
            1,
        ];
        Ok(Launch::new(&shaders::GROUP_TABLES, &params, buffers, grid))
    }
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of GROUP_TABLES = GroupTablesParams {
            head_dim, group_size, width, num_centroids, is_rotated, sm_scale
        };
        Coordinate of GROUP_TABLES = Coordinate { order, scale };
    }
}
