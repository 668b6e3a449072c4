//! Keys of one format: a block of a prompt that is coded, and codes that are scored.

use anyhow::{Context, Result, ensure};
use half::f16;
use heterokv_attn::device::{
    Coordinate, Device, DeviceCoders, EncodeKeys, GroupTables, KeyRows, KeySpan, ScoreGroups,
    ScoreKeys, Span,
};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};
use heterokv_quant::{ChannelCodes, FitInput, GroupFrame, KeyCoder, KeyFormat, Level};

use super::kernels::Shape;
use super::measured::{near, number, room, upload};
use super::pages::{CodePages, Scored};

/// Keys that coders are fitted on.
const FIT_TOKENS: usize = 512;

/// The most bytes of a thousand that may be others than the host's: where the last bit of a quotient decides.
const MAX_DIFFERING: usize = 10;

/// A coder for each KV head, of keys of its own.
fn coders(shape: &Shape, format: KeyFormat) -> Result<Vec<KeyCoder>> {
    let head_dim = shape.head_dim;
    let query_energy: Vec<f32> = (0..head_dim).map(|c| 1.5 + number(c)).collect();
    let fit = |head: usize| {
        let (keys, level) = (keys_of(shape, FIT_TOKENS, head), Level::detect());
        let seed = head as u64;
        let input = FitInput { head_dim, keys: &keys, query_energy: &query_energy, seed, level };
        Ok(KeyCoder::fit(format, &input)?)
    };
    (0..shape.num_kv_heads).map(fit).collect()
}

/// The first keys of a KV head `[num_tokens, head_dim]`, those of all heads of a token beside each other in memory.
fn keys_of(shape: &Shape, num_tokens: usize, head: usize) -> Vec<f32> {
    let first = |token: usize| (token * shape.num_kv_heads + head) * shape.head_dim;
    let key = |token: usize| (first(token)..first(token) + shape.head_dim).map(number);
    (0..num_tokens).flat_map(key).collect()
}

/// The first keys of a KV head as the host codes them.
fn coded(coder: &KeyCoder, shape: &Shape, num_tokens: usize, head: usize) -> Result<Vec<u8>> {
    let mut codes = vec![0; coder.layout().bytes(num_tokens)];
    coder.encode(Level::detect(), 0, &keys_of(shape, num_tokens, head), &mut codes)?;
    Ok(codes)
}

/// A block of a prompt, and its codes.
pub(super) struct EncodeStage {
    coders: Vec<KeyCoder>,
    on_device: DeviceCoders,
    max_tokens: usize,
    num_spans: usize,
    spans: Buffer,
    codes: Buffer,
}

impl EncodeStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape, format: KeyFormat) -> Result<Self> {
        let coders = coders(shape, format)?;
        let on_device = DeviceCoders::upload(gpu, &coders.iter().collect::<Vec<_>>())?;
        let layout = coders[0].layout();
        // Of formats per channel a block a span.
        let max_tokens = if layout.group_tokens > 1 { layout.group_tokens } else { Span::TOKENS };
        let head_bytes = layout.bytes(shape.block);
        let mut spans = Vec::new();
        for head in 0..shape.num_kv_heads {
            for first in (0..shape.block).step_by(max_tokens) {
                spans.push(KeySpan {
                    coder: head as u32,
                    key: ((first * shape.num_kv_heads + head) * shape.head_dim) as u32,
                    place: ((head * head_bytes + layout.bytes(first)) / 4) as u32,
                    slot: 0,
                    num_tokens: max_tokens.min(shape.block - first) as u32,
                });
            }
        }
        Ok(Self {
            on_device,
            max_tokens,
            num_spans: spans.len(),
            spans: upload(gpu, &spans)?,
            codes: room(gpu, shape.num_kv_heads * head_bytes / 4)?,
            coders,
        })
    }

    pub(super) fn encode(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        keys: Bound<'_>,
    ) -> Result<()> {
        let encode = EncodeKeys {
            coders: &self.on_device,
            rows: KeyRows::F32,
            key_stride: shape.num_kv_heads * shape.head_dim,
            max_tokens: self.max_tokens,
            num_spans: self.num_spans,
            spans: Bound::all(&self.spans),
            keys,
            codes: Bound::all(&self.codes),
        };
        Ok(device.encode_keys(commands, &encode)?)
    }

    /// The codes are those of the host.
    pub(super) fn check(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let mut expected = Vec::new();
        for (head, coder) in self.coders.iter().enumerate() {
            expected.extend(coded(coder, shape, shape.block, head)?);
        }
        let codes = gpu.read(&self.codes, 0, expected.len() as u64)?;
        let differing = codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
        ensure!(
            differing * 1000 <= MAX_DIFFERING * expected.len(),
            "{differing} of {} bytes are others than the host's",
            expected.len()
        );
        Ok(())
    }
}

/// Keys coded by the host, on pages, which a kernel scores.
struct Coded {
    coders: Vec<KeyCoder>,
    pages: CodePages,
    page_of_head: Vec<Vec<u8>>,
}

impl Coded {
    fn new(gpu: &Gpu, shape: &Shape, format: KeyFormat) -> Result<Self> {
        let coders = coders(shape, format)?;
        let pages = coders.iter().enumerate();
        let page_of_head: Vec<Vec<u8>> = pages
            .map(|(head, coder)| coded(coder, shape, Span::TOKENS, head))
            .collect::<Result<_>>()?;
        Ok(Self { pages: CodePages::new(gpu, shape, &page_of_head)?, coders, page_of_head })
    }

    /// The queries of each KV head's group, with its coder.
    fn groups<'a>(&'a self, shape: &Shape) -> impl Iterator<Item = (&'a KeyCoder, Vec<f32>)> {
        let len = shape.heads().group_size() * shape.head_dim;
        let queries = move |head: usize| (head * len..(head + 1) * len).map(number).collect();
        self.coders.iter().enumerate().map(move |(head, coder)| (coder, queries(head)))
    }

    /// Scores are products of queries with what codes stand for.
    fn check(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let heads = shape.heads();
        let decoded = |(coder, page): (&KeyCoder, &Vec<u8>)| {
            let mut keys = vec![0.0; Span::TOKENS * heads.head_dim];
            coder.decode(0, page, &mut keys);
            keys
        };
        let decoded: Vec<Vec<f32>> =
            self.coders.iter().zip(&self.page_of_head).map(decoded).collect();
        self.pages.check(gpu, shape, |head, token| {
            let key = &decoded[head / heads.group_size()][token * heads.head_dim..];
            let query = (head * heads.head_dim..(head + 1) * heads.head_dim).map(number);
            let terms = query.zip(key).map(|(q, k)| f64::from(q) * f64::from(*k));
            f64::from(heads.sm_scale) * terms.sum::<f64>()
        })
    }
}

/// Codes that lie channel by channel, and queries in their frame.
pub(super) struct KeyStage {
    coded: Coded,
    codes_form: ChannelCodes,
    queries: Buffer,
    finals: Buffer,
}

impl KeyStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape, format: KeyFormat) -> Result<Self> {
        let coded = Coded::new(gpu, shape, format)?;
        let (mut queries, mut finals, mut codes_form) = (Vec::new(), Vec::new(), None);
        for (coder, of_group) in coded.groups(shape) {
            let framed = coder.channel_queries(&of_group, shape.heads().sm_scale);
            let framed = framed.context("codes lie channel by channel")?;
            queries.extend(framed.queries);
            finals.extend(framed.finals);
            codes_form = Some(framed.codes);
        }
        Ok(Self {
            coded,
            codes_form: codes_form.context("there is a KV head")?,
            queries: upload(gpu, &queries)?,
            finals: upload(gpu, &finals)?,
        })
    }

    pub(super) fn score(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        for Scored { num_spans, spans, codes } in self.coded.pages.dispatches() {
            let score = ScoreKeys {
                group_size: shape.heads().group_size(),
                head_dim: shape.head_dim,
                codes_form: self.codes_form,
                score_stride: shape.context,
                num_spans,
                spans,
                codes,
                queries: Bound::all(&self.queries),
                finals: Bound::all(&self.finals),
                scores: Bound::all(&self.coded.pages.scores),
            };
            device.score_keys(commands, &score)?;
        }
        Ok(())
    }

    pub(super) fn check(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        self.coded.check(gpu, shape)
    }
}

/// Product quantization: codes, codebooks, and the tables of queries over these.
pub(super) struct GroupStage {
    coded: Coded,
    width: usize,
    code_bits: usize,
    kv_heads: Buffer,
    coordinates: Buffer,
    rotation: Buffer,
    codebooks: Buffer,
    tables: Buffer,
    finals: Buffer,
}

impl GroupStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape, format: KeyFormat) -> Result<Self> {
        let coded = Coded::new(gpu, shape, format)?;
        let frames: Option<Vec<GroupFrame>> =
            coded.coders.iter().map(KeyCoder::group_frame).collect();
        let frames = frames.context("codes are of groups")?;
        let GroupFrame { width, code_bits, .. } = frames[0];
        let kv_heads: Vec<u32> = (0..shape.num_kv_heads as u32).collect();
        let coordinates: Vec<Coordinate> = frames.iter().flat_map(Coordinate::all_of).collect();
        let codebooks = frames.iter().flat_map(|frame| &frame.codebooks);
        let codebooks: Vec<u16> = codebooks.copied().map(f16::to_bits).collect();
        let num_tables = shape.num_qo_heads * shape.head_dim / width;
        Ok(Self {
            coded,
            width,
            code_bits,
            kv_heads: upload(gpu, &kv_heads)?,
            coordinates: upload(gpu, &coordinates)?,
            rotation: upload(gpu, &[0.0f32])?,
            codebooks: upload(gpu, &codebooks)?,
            tables: room(gpu, num_tables << code_bits)?,
            finals: room(gpu, 4 * shape.num_qo_heads)?,
        })
    }

    pub(super) fn prepare(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        q: Bound<'_>,
    ) -> Result<()> {
        let prepare = GroupTables {
            shape: shape.heads(),
            num_heads: shape.num_kv_heads,
            width: self.width,
            code_bits: self.code_bits,
            is_rotated: false,
            kv_heads: Bound::all(&self.kv_heads),
            coordinates: Bound::all(&self.coordinates),
            rotation: Bound::all(&self.rotation),
            codebooks: Bound::all(&self.codebooks),
            q,
            tables: Bound::all(&self.tables),
            finals: Bound::all(&self.finals),
        };
        Ok(device.launch(commands, &prepare.launch()?)?)
    }

    pub(super) fn score(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        for Scored { num_spans, spans, codes } in self.coded.pages.dispatches() {
            let score = ScoreGroups {
                group_size: shape.heads().group_size(),
                num_groups: shape.head_dim / self.width,
                code_bits: self.code_bits,
                score_stride: shape.context,
                num_spans,
                spans,
                codes,
                tables: Bound::all(&self.tables),
                scores: Bound::all(&self.coded.pages.scores),
            };
            device.score_groups(commands, &score)?;
        }
        Ok(())
    }

    /// The tables are those of the host.
    pub(super) fn check_tables(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let tables = gpu.read(&self.tables, 0, self.tables.num_bytes())?;
        let tables: Vec<f32> = bytemuck::pod_collect_to_vec(&tables);
        let mut expected = Vec::new();
        for (coder, queries) in self.coded.groups(shape) {
            let of_group = coder.group_tables(&queries, shape.heads().sm_scale);
            expected.extend(of_group.context("codes are of groups")?.tables);
        }
        ensure!(tables.len() == expected.len(), "{} entries of tables", tables.len());
        for (entry, (actual, expected)) in tables.iter().zip(&expected).enumerate() {
            near(&format!("entry {entry}"), *actual, (*expected).into(), 1.0)?;
        }
        Ok(())
    }

    pub(super) fn check_scores(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        self.coded.check(gpu, shape)
    }
}
