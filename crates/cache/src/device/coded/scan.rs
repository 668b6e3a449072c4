//! How queries meet the coded keys of a set: brought into the frame of its coders, then scored.

use half::f16;
use heterokv_attn::HeadShape;
use heterokv_attn::device::{
    Coordinate, Device, FrameQueries, GroupTables, ScoreGroups, ScoreKeys, ScorePlanes,
};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};
use heterokv_quant::{ChannelCodes, FrameCodes, GroupFrame, KeyCoder, KeyFormat, QueryFrame, Tail};

use crate::device::scratch::Scratch;
use crate::{Error, Result};

/// Entries of the table of a nibble plane.
const PLANE_ENTRIES: usize = 16;

/// What queries are prepared with, of the KV heads of a set.
#[derive(Debug)]
pub(super) struct Scan {
    num_heads: usize,
    head_dim: usize,
    kv_heads: Buffer,
    frame: Frame,
}

#[derive(Debug)]
enum Frame {
    /// Codes are numbers of channels.
    Channels { transform_block: usize, met: Met, channels: Buffer, planes: Buffer, levels: Buffer },
    /// Codes are numbers of centroids.
    Groups {
        width: usize,
        code_bits: usize,
        is_rotated: bool,
        coordinates: Buffer,
        rotation: Buffer,
        codebooks: Buffer,
    },
}

/// What a framed query meets.
#[derive(Clone, Copy, Debug)]
enum Met {
    Channels(ChannelCodes),
    Planes { num_planes: usize, tail: Tail, has_levels: bool },
}

/// Coded tokens that lie in one buffer.
#[derive(Clone, Copy)]
pub(super) struct ScannedSpans<'a> {
    pub(super) num_spans: usize,
    /// [`Span`](heterokv_attn::device::Span) `[num_spans]`.
    pub(super) spans: Bound<'a>,
    pub(super) codes: Bound<'a>,
}

/// Whether there are kernels that score keys of this format.
pub(super) fn has_scan(format: KeyFormat) -> bool {
    format.has_query_frame() || format.has_group_frame()
}

/// Words of what a query is prepared to, at most.
pub(in crate::device) fn table_words(format: KeyFormat, head_dim: usize) -> usize {
    match format {
        KeyFormat::Pq { width, code_bits, .. } => (head_dim / usize::from(width)) << code_bits,
        _ => head_dim.max(format.num_planes(head_dim) * PLANE_ENTRIES),
    }
}

/// Bytes of [`Scan`] for a KV head, up to a few.
pub(super) fn frame_bytes(format: KeyFormat, head_dim: usize) -> usize {
    match format {
        KeyFormat::Pq { code_bits, is_rotated, .. } => {
            let rotation = if is_rotated { 4 * head_dim * head_dim } else { 0 };
            size_of::<Coordinate>() * head_dim + rotation + ((2 * head_dim) << code_bits)
        }
        _ => 16 * head_dim + 4 * format.num_planes(head_dim),
    }
}

impl Scan {
    /// Of the KV heads `heads` of a layer, with the coder of each.
    ///
    /// # Errors
    /// [`Error::NotOnDevice`] for a coder without a frame, and what the device lacks.
    pub(super) fn new(gpu: &Gpu, heads: &[usize], coders: &[&KeyCoder]) -> Result<Self> {
        let Some(first) = coders.first() else {
            return Err(Error::Conflict { conflict: "a set of coded keys has KV heads" });
        };
        let kv_heads: Vec<u32> = heads.iter().map(|&head| head as u32).collect();
        let frame = match frames_of(coders, KeyCoder::query_frame) {
            Some(frames) => Frame::of_channels(gpu, &frames)?,
            None => match frames_of(coders, KeyCoder::group_frame) {
                Some(frames) => Frame::of_groups(gpu, &frames)?,
                None => return Err(Error::NotOnDevice { format: first.format() }),
            },
        };
        Ok(Self {
            num_heads: heads.len(),
            head_dim: first.head_dim(),
            kv_heads: gpu.upload("KV heads of a set", bytemuck::cast_slice(&kv_heads))?,
            frame,
        })
    }

    /// Bytes on the device.
    pub(super) fn num_bytes(&self) -> u64 {
        let of_frame = match &self.frame {
            Frame::Channels { channels, planes, levels, .. } => [channels, planes, levels],
            Frame::Groups { coordinates, rotation, codebooks, .. } => {
                [coordinates, rotation, codebooks]
            }
        };
        let of_frame: u64 = of_frame.iter().map(|buffer| buffer.num_bytes()).sum();
        self.kv_heads.num_bytes() + of_frame
    }

    /// Adds the preparation of queries `q [num_qo_heads, head_dim]`, f32, in `scratch`.
    pub(super) fn prepare(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: HeadShape,
        q: Bound<'_>,
        scratch: &Scratch,
    ) -> Result<()> {
        let (num_heads, kv_heads) = (self.num_heads, Bound::all(&self.kv_heads));
        let (tables, finals) = (Bound::all(&scratch.tables), Bound::all(&scratch.finals));
        match &self.frame {
            Frame::Channels { transform_block, met, channels, planes, levels } => {
                let (num_planes, has_levels) = match *met {
                    Met::Channels(_) => (0, false),
                    Met::Planes { num_planes, has_levels, .. } => (num_planes, has_levels),
                };
                let prepare = FrameQueries {
                    shape,
                    num_heads,
                    num_planes,
                    transform_block: *transform_block,
                    has_levels,
                    kv_heads,
                    channels: Bound::all(channels),
                    planes: Bound::all(planes),
                    levels: Bound::all(levels),
                    q,
                    tables,
                    finals,
                };
                Ok(device.frame_queries(commands, &prepare)?)
            }
            Frame::Groups { width, code_bits, is_rotated, coordinates, rotation, codebooks } => {
                let prepare = GroupTables {
                    shape,
                    num_heads,
                    width: *width,
                    code_bits: *code_bits,
                    is_rotated: *is_rotated,
                    kv_heads,
                    coordinates: Bound::all(coordinates),
                    rotation: Bound::all(rotation),
                    codebooks: Bound::all(codebooks),
                    q,
                    tables,
                    finals,
                };
                Ok(device.launch(commands, &prepare.launch()?)?)
            }
        }
    }

    /// Adds the scores of spans by the queries that were prepared last.
    pub(super) fn score(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        group_size: usize,
        scanned: ScannedSpans<'_>,
        scratch: &Scratch,
    ) -> Result<()> {
        let ScannedSpans { num_spans, spans, codes } = scanned;
        let (tables, finals) = (Bound::all(&scratch.tables), Bound::all(&scratch.finals));
        let (scores, score_stride) = (Bound::all(&scratch.scores), scratch.max_tokens());
        let of_planes = |num_planes, tail| ScorePlanes {
            group_size,
            num_planes,
            tail,
            score_stride,
            num_spans,
            spans,
            codes,
            tables,
            finals,
            scores,
        };
        let head_dim = self.head_dim;
        match self.frame {
            Frame::Channels { met: Met::Planes { num_planes, tail, .. }, .. } => {
                device.score_planes(commands, &of_planes(num_planes, tail))?;
            }
            Frame::Channels { met: Met::Channels(codes_form), .. } => {
                let score = ScoreKeys {
                    group_size,
                    head_dim,
                    codes_form,
                    score_stride,
                    num_spans,
                    spans,
                    codes,
                    queries: tables,
                    finals,
                    scores,
                };
                device.score_keys(commands, &score)?;
            }
            Frame::Groups { width, code_bits: 4, .. } => {
                device.score_planes(commands, &of_planes(head_dim / width, Tail::None))?;
            }
            Frame::Groups { width, code_bits, .. } => {
                let score = ScoreGroups {
                    group_size,
                    num_groups: head_dim / width,
                    code_bits,
                    score_stride,
                    num_spans,
                    spans,
                    codes,
                    tables,
                    scores,
                };
                device.score_groups(commands, &score)?;
            }
        }
        Ok(())
    }
}

impl Frame {
    /// Of at least one frame, all of one format.
    fn of_channels(gpu: &Gpu, frames: &[QueryFrame]) -> Result<Self> {
        let first = &frames[0];
        let channels: Vec<_> = frames.iter().flat_map(FrameQueries::channels_of).collect();
        let mut words: Vec<u32> = frames.iter().flat_map(FrameQueries::plane_words).collect();
        let (met, levels) = match &first.codes {
            FrameCodes::Channels(codes) => {
                // A binding is never empty.
                words.push(0);
                (Met::Channels(*codes), [0.0; 16])
            }
            FrameCodes::Planes { planes, levels, tail } => {
                let (num_planes, has_levels) = (planes.len(), levels.is_some());
                (Met::Planes { num_planes, tail: *tail, has_levels }, levels.unwrap_or_default())
            }
        };
        Ok(Self::Channels {
            transform_block: first.transform_block,
            met,
            channels: gpu.upload("channels of frames", bytemuck::cast_slice(&channels))?,
            planes: gpu.upload("planes of frames", bytemuck::cast_slice(&words))?,
            levels: gpu.upload("levels", bytemuck::cast_slice(&levels))?,
        })
    }

    /// Of at least one frame, all of one format.
    fn of_groups(gpu: &Gpu, frames: &[GroupFrame]) -> Result<Self> {
        let first = &frames[0];
        let coordinates: Vec<Coordinate> = frames.iter().flat_map(Coordinate::all_of).collect();
        let is_rotated = first.rotation.is_some();
        let mut rotation: Vec<f32> =
            frames.iter().flat_map(|frame| frame.rotation.iter().flatten()).copied().collect();
        if !is_rotated {
            // A binding is never empty.
            rotation.push(0.0);
        }
        let codebooks: Vec<u16> = frames
            .iter()
            .flat_map(|frame| frame.codebooks.iter().copied().map(f16::to_bits))
            .collect();
        Ok(Self::Groups {
            width: first.width,
            code_bits: first.code_bits,
            is_rotated,
            coordinates: gpu.upload("coordinates of frames", bytemuck::cast_slice(&coordinates))?,
            rotation: gpu.upload("rotations of frames", bytemuck::cast_slice(&rotation))?,
            codebooks: gpu.upload("codebooks", bytemuck::cast_slice(&codebooks))?,
        })
    }
}

/// The frames of all coders, if they have such.
fn frames_of<F>(coders: &[&KeyCoder], frame: impl Fn(&KeyCoder) -> Option<F>) -> Option<Vec<F>> {
    coders.iter().map(|coder| frame(coder)).collect()
}
