//! Keys that become codes on a device.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};
use heterokv_quant::{Encoding, KeyCoder, KeyFormat, TokenRule};
use heterokv_shaders::{self as shaders, Shader};

use super::scores::plane_word;
use super::{Device, DeviceError, DeviceResult, Launch, MAX_HEAD_DIM, Operand, check_len, word};

const NAME: &str = "encode_keys";

/// Some keys of one KV head that are coded, whose codes follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KeySpan {
    /// Which of the [`DeviceCoders`].
    pub coder: u32,
    /// Where the key of its first token begins, in words of 4 bytes.
    pub key: u32,
    /// Where the strip or block in which its first token lies begins, in words.
    pub place: u32,
    /// The place of its first token in that strip; 0 for formats per channel.
    pub slot: u32,
    /// Its tokens; whole blocks of formats per channel, one block a span.
    pub num_tokens: u32,
}

/// How keys are held that are to be coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRows {
    /// In single precision.
    F32,
    /// In half precision, two channels a word.
    F16,
}

/// What a kernel reads of a channel of an `alloc` coder.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Channel {
    channel: u32,
    centre: f32,
    step: f32,
    weight: f32,
    middle: f32,
    usual: f32,
}

/// Coders of keys of some KV heads, all of one format, as a device encodes by them; `M` is a buffer of some device.
#[derive(Debug)]
pub struct DeviceCoders<M = Buffer> {
    shader: &'static Shader,
    params: EncodeParams,
    num_coders: usize,
    /// Of codes that lie channel by channel: bits and tokens of a block.
    block: Option<(u8, usize)>,
    planes: M,
    /// Channels of `alloc`, turns of others.
    tables: M,
    levels: M,
}

/// Keys that are to be coded.
#[derive(Clone, Copy, Debug)]
pub struct EncodeKeys<'a, B, M = Buffer> {
    /// By what.
    pub coders: &'a DeviceCoders<M>,
    /// How keys are held.
    pub rows: KeyRows,
    /// From the key of a token to that of the next, in words of 4 bytes.
    pub key_stride: usize,
    /// The most tokens of a span.
    pub max_tokens: usize,
    /// Number of spans.
    pub num_spans: usize,
    /// [`KeySpan`] `[num_spans]`.
    pub spans: B,
    /// Post-RoPE keys, finite.
    pub keys: B,
    /// Strips or blocks in the host's layout. The codes of tokens in no span stay as they are.
    pub codes: B,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct EncodeParams {
    head_dim: u32,
    key_stride: u32,
    is_half: u32,
    num_planes: u32,
    cell_bits: u32,
    strip_words: u32,
    bits: u32,
    block: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EncodeChannelsParams {
    head_dim: u32,
    key_stride: u32,
    is_half: u32,
    bits: u32,
    group_tokens: u32,
    num_code_words: u32,
}

/// What one coder gives a kernel.
#[derive(Default)]
struct Tables {
    planes: Vec<u32>,
    channels: Vec<Channel>,
    turns: Vec<[f32; 2]>,
    levels: Vec<f32>,
}

impl DeviceCoders {
    /// Uploads the tables of `coders`, at least one, all of one format and `head_dim`.
    ///
    /// # Errors
    /// [`DeviceError::Format`] for one that has no kernel ([`KeyCoder::encoding`]) or is not that of the first;
    /// [`DeviceError::Shape`] for none and for a `head_dim` above 256; no memory.
    pub fn upload(gpu: &Gpu, coders: &[&KeyCoder]) -> DeviceResult<Self> {
        Self::of(coders, |label, words| Ok(gpu.upload(label, bytemuck::cast_slice(words))?))
    }

    /// Bytes that one coder's tables take of the device, up to a few.
    #[must_use]
    pub fn bytes_of_one(format: KeyFormat, head_dim: usize, num_planes: usize) -> usize {
        let of_channel = match format {
            KeyFormat::Alloc { .. } => size_of::<Channel>(),
            KeyFormat::LloydMax { .. }
            | KeyFormat::LloydMaxPlain { .. }
            | KeyFormat::Rotated { .. } => size_of::<[f32; 2]>(),
            _ => 0,
        };
        of_channel * head_dim + 4 * num_planes
    }

    /// Bytes on the device.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        [&self.planes, &self.tables, &self.levels].map(Buffer::num_bytes).into_iter().sum()
    }
}

impl<M> DeviceCoders<M> {
    /// The same in buffers that `upload` makes: what each is for and its words.
    ///
    /// # Errors
    /// Those of `upload`, and those of [`DeviceCoders::upload`] but for memory.
    pub fn of<E: From<DeviceError>>(
        coders: &[&KeyCoder],
        mut upload: impl FnMut(&'static str, &[u32]) -> Result<M, E>,
    ) -> Result<Self, E> {
        let ((shader, params, block), tables) = Tables::of(coders)?;
        let Tables { planes, channels, turns, levels } = tables;
        let of_rule: &[u32] = match channels[..] {
            [] => bytemuck::cast_slice(&turns),
            _ => bytemuck::cast_slice(&channels),
        };
        // A binding is never empty.
        let of_rule = if of_rule.is_empty() { &[0; 2] } else { of_rule };
        Ok(Self {
            shader,
            params,
            num_coders: coders.len(),
            block,
            planes: upload("coders: planes", &planes)?,
            tables: upload("coders: tables", of_rule)?,
            levels: upload("coders: levels", bytemuck::cast_slice(&levels))?,
        })
    }

    /// How many there are.
    #[must_use]
    pub fn num_coders(&self) -> usize {
        self.num_coders
    }
}

/// The kernel of a format, what it is told, and bits and tokens of a block of codes per channel.
type Rule = (&'static Shader, EncodeParams, Option<(u8, usize)>);

impl Tables {
    /// Those of all coders, one after the other.
    fn of(coders: &[&KeyCoder]) -> DeviceResult<(Rule, Self)> {
        let bad = |what, value: usize, remedy| DeviceError::Shape {
            operation: NAME,
            what,
            value: value as u64,
            remedy,
        };
        let none = || bad("coders", 0, "give one for each KV head");
        let first = coders.first().ok_or_else(none)?;
        let head_dim = first.head_dim();
        if head_dim > MAX_HEAD_DIM {
            return Err(bad(
                "a head_dim",
                head_dim,
                "it is made for at most 256; encode on the host",
            ));
        }
        let mut tables = Self::default();
        let mut made = None;
        for coder in coders {
            if (coder.format(), coder.head_dim()) != (first.format(), head_dim) {
                let (format, remedy) =
                    (coder.format(), "upload coders of each format by themselves");
                return Err(DeviceError::Format { operation: NAME, format, remedy });
            }
            let encoding = coder.encoding().ok_or(DeviceError::Format {
                operation: NAME,
                format: coder.format(),
                remedy: "encode them on the host",
            })?;
            made = Some(tables.add(head_dim, encoding));
        }
        Ok((made.ok_or_else(none)?, tables))
    }

    /// Adds those of a coder.
    fn add(&mut self, head_dim: usize, encoding: Encoding) -> Rule {
        let mut params = EncodeParams { head_dim: head_dim as u32, ..EncodeParams::zeroed() };
        let (rule, strips) = match encoding {
            Encoding::Tokens { rule, strips } => (rule, strips),
            Encoding::Channels { bits, group_tokens } => {
                return (&shaders::ENCODE_CHANNELS, params, Some((bits, group_tokens)));
            }
        };
        params.num_planes = strips.planes.len() as u32;
        params.cell_bits = strips.cell.bits() as u32;
        params.strip_words = strips.num_bytes() as u32 / 4;
        self.planes.extend(strips.planes.iter().map(plane_word));
        let shader = match rule {
            TokenRule::Integers { bits, rotation } => {
                params.bits = bits.into();
                if let Some(rotation) = rotation {
                    params.block = rotation.block() as u32;
                    self.turns.extend(rotation.signs().iter().map(|sign| [0.0, *sign]));
                }
                &shaders::ENCODE_INTEGERS
            }
            TokenRule::Levels { levels, centre, rotation } => {
                params.bits = levels.len().ilog2();
                params.block = rotation.block() as u32;
                let turns = centre.iter().zip(rotation.signs());
                self.turns.extend(turns.map(|(centre, sign)| [*centre, *sign]));
                self.levels = levels;
                &shaders::ENCODE_LEVELS
            }
            TokenRule::Allocated { channels } => {
                self.channels.extend(channels.iter().map(|of| Channel {
                    channel: of.channel,
                    centre: of.centre,
                    step: of.step,
                    weight: of.weight,
                    middle: of.middle,
                    usual: of.usual,
                }));
                &shaders::ENCODE_ALLOCATED
            }
        };
        (shader, params, None)
    }
}

impl<'a, M, B: Operand + From<&'a M>> EncodeKeys<'a, B, M> {
    /// What runs. What the spans point at is the caller's to have right; keys that are not finite give codes of nothing.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        let Self { coders, rows, key_stride, max_tokens, num_spans, .. } = *self;
        check_len(NAME, "spans", &self.spans, 5 * num_spans as u64)?;
        let params = EncodeParams {
            key_stride: word(NAME, "a key_stride", key_stride as u64)?,
            is_half: u32::from(rows == KeyRows::F16),
            ..coders.params
        };
        let wide = word(NAME, "spans", num_spans as u64)?;
        if let Some((bits, group_tokens)) = coders.block {
            let EncodeParams { head_dim, key_stride, is_half, .. } = params;
            let num_code_words = channel_code_words(head_dim as usize, bits, group_tokens) as u32;
            let (bits, group_tokens) = (bits.into(), group_tokens as u32);
            let params = EncodeChannelsParams {
                head_dim,
                key_stride,
                is_half,
                bits,
                group_tokens,
                num_code_words,
            };
            let buffers = [self.spans, self.keys, self.codes];
            return Ok(Launch::new(coders.shader, &params, buffers, [wide, 1, 1]));
        }
        let [planes, tables, levels] =
            [&coders.planes, &coders.tables, &coders.levels].map(B::from);
        let mut buffers = vec![self.spans, self.keys, planes, tables, self.codes, levels];
        buffers.truncate(coders.shader.bindings.len());
        let high = word(NAME, "tokens of a span", max_tokens as u64)?;
        Ok(Launch::new(coders.shader, &params, buffers, [wide, high, 1]))
    }
}

impl Device {
    /// Adds [`EncodeKeys`] to `commands`.
    ///
    /// # Errors
    /// As [`EncodeKeys::launch`], [`DeviceError::Shape`] for more spans or tokens than a dispatch has workgroups, and
    /// those of the device.
    pub fn encode_keys<'a>(
        &self,
        commands: &mut Commands<'_>,
        encode: &EncodeKeys<'a, Bound<'a>>,
    ) -> DeviceResult<()> {
        let limit = self.gpu().limits().grid as usize;
        for (what, value) in [("spans", encode.num_spans), ("tokens of a span", encode.max_tokens)]
        {
            if value > limit {
                let remedy = "a dispatch has as many workgroups at most; encode them in parts";
                let value = value as u64;
                return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
            }
        }
        self.launch(commands, &encode.launch()?)
    }
}

/// Words of the codes of a block of integers with a scale and zero for each channel.
pub(super) fn channel_code_words(head_dim: usize, bits: u8, group_tokens: usize) -> usize {
    head_dim * usize::from(bits) * group_tokens / 32
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of ENCODE_INTEGERS, ENCODE_LEVELS, ENCODE_ALLOCATED = EncodeParams {
            head_dim, key_stride, is_half, num_planes, cell_bits, strip_words, bits, block
        };
        Params of ENCODE_CHANNELS = EncodeChannelsParams {
            head_dim, key_stride, is_half, bits, group_tokens, num_code_words
        };
        KeySpan of ENCODE_INTEGERS, ENCODE_LEVELS, ENCODE_ALLOCATED, ENCODE_CHANNELS =
            KeySpan { coder, key, place, slot, num_tokens };
        Channel of ENCODE_ALLOCATED = Channel { channel, centre, step, weight, middle, usual };
    }
}
