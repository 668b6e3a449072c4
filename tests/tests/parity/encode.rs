//! Keys that become codes on devices, held to the rules of the formats in f64, and to the bytes of the host.

use half::f16;
use heterokv_attn::device::{DeviceCoders, DeviceError, EncodeKeys, KeyRows, KeySpan};
use heterokv_gpu::{Access, Bound, Commands, KernelSource};
use heterokv_quant::{
    AllocatedChannel, CodePlane, Encoding, FitInput, KeyCoder, KeyFormat, Level, TokenRule,
};
use heterokv_shaders::{ENCODE_ALLOCATED, Variant};
use heterokv_testkit::Inputs;

use crate::codecs::{is_channel_near, is_near};
use crate::devices::{Place, places_or_skip};
use crate::sites::{Memories, Output, Site, upload};

/// Keys that every format can be fitted on.
const FIT_TOKENS: usize = 512;

/// What the memory of codes holds before: no tails of it are finite scales of anything near.
const BEFORE: u8 = 0xA5;

/// The most bytes of a thousand that may be others than the host's, on any device.
const MAX_DIFFERING: usize = 10;

/// KV heads, channels, tokens, the place of the first, and how keys are held.
struct Shape {
    num_heads: usize,
    head_dim: usize,
    num_tokens: usize,
    first: usize,
    rows: KeyRows,
}

/// One token, around strips, and more; the last heads are the least even.
fn shapes() -> [Shape; 4] {
    let shape = |num_heads, head_dim, num_tokens, first, rows| Shape {
        num_heads,
        head_dim,
        num_tokens,
        first,
        rows,
    };
    [
        shape(1, 64, 1, 5, KeyRows::F32),
        shape(3, 64, 70, 31, KeyRows::F16),
        shape(2, 128, 33, 0, KeyRows::F32),
        shape(1, 80, 96, 64, KeyRows::F16),
    ]
}

const INTEGER_FORMATS: [&str; 7] = [
    "int2-token",
    "int3-token",
    "int4-token",
    "int6-token",
    "int8-token",
    "rot-int4-token",
    "rot-int8-token",
];

const LEVEL_FORMATS: [&str; 4] = ["lm1", "lm2", "lm4", "lm2-plain"];

const ALLOCATED_FORMATS: [&str; 4] = ["alloc/1", "alloc/2.6", "alloc/5.5", "alloc/8"];

const CHANNEL_FORMATS: [&str; 7] = [
    "int2-channel/32",
    "int3-channel/64",
    "int4-channel/32",
    "int4-channel/128",
    "int6-channel/32",
    "int8-channel/64",
    "int8-channel/128",
];

/// Keys of some KV heads, their coders, and where their codes go.
struct Case {
    shape: Shape,
    coders: Vec<KeyCoder>,
    /// `[num_tokens, head_dim]` by head.
    keys: Vec<Vec<f32>>,
    seed: u64,
}

impl Case {
    fn new(format: KeyFormat, shape: Shape, seed: u64) -> Self {
        let mut inputs = Inputs::new(seed);
        let Shape { num_heads, head_dim, num_tokens, rows, .. } = shape;
        let (mut coders, mut keys) = (Vec::new(), Vec::new());
        for head in 0..num_heads {
            // Channels of different spreads and centres, as after RoPE.
            let fitted = inputs.heavy_channels(FIT_TOKENS, head_dim, 3, 4.0);
            let energy: Vec<f32> = (0..head_dim).map(|_| 0.2 + inputs.unit()).collect();
            let level = Level::detect();
            let seed = head as u64;
            let input = FitInput { head_dim, keys: &fitted, query_energy: &energy, seed, level };
            coders.push(KeyCoder::fit(format, &input).unwrap());
            let mut of_head = inputs.heavy_channels(num_tokens, head_dim, 3, 4.0);
            for (token, key) in of_head.chunks_exact_mut(head_dim).enumerate() {
                match token % 16 {
                    7 => key.fill(0.0),
                    9 => key.fill(-3.3),
                    11 => key.iter_mut().for_each(|x| *x *= 40.0),
                    13 => key.iter_mut().for_each(|x| *x = 30.0 + 0.01 * *x),
                    15 => key[head_dim / 2] = 900.0,
                    _ => {}
                }
            }
            if rows == KeyRows::F16 {
                of_head.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
            }
            keys.push(of_head);
        }
        Self { shape, coders, keys, seed }
    }

    /// Bytes of the codes of a head: one block more than are needed.
    fn head_bytes(&self) -> usize {
        let layout = self.coders[0].layout();
        layout.bytes(self.shape.first + self.shape.num_tokens) + layout.block_bytes
    }

    /// What the host makes of it, over `before`.
    fn host(&self, before: &[u8], keys: &[Vec<f32>]) -> Vec<u8> {
        let mut codes = before.to_vec();
        let heads = codes.chunks_exact_mut(self.head_bytes());
        for ((coder, keys), codes) in self.coders.iter().zip(keys).zip(heads) {
            coder.encode(Level::SCALAR, self.shape.first, keys, codes).unwrap();
        }
        codes
    }

    /// What a device makes of it, over `before`.
    fn device<S: Site>(&self, site: &S, before: &[u8], label: &str) -> Vec<u8> {
        let Shape { num_heads, head_dim, num_tokens, first, rows } = self.shape;
        let (memories, layout) = (site.memories(), self.coders[0].layout());
        let coders: Vec<&KeyCoder> = self.coders.iter().collect();
        let tables = |_, words: &[u32]| Ok::<_, DeviceError>(memories.upload_words(words));
        let coders = DeviceCoders::of(&coders, tables).unwrap();
        assert_eq!(coders.num_coders(), num_heads);
        // Keys lie token by token, all heads of one beside each other.
        let mut words = Vec::new();
        for token in 0..num_tokens {
            for keys in &self.keys {
                let key = &keys[token * head_dim..][..head_dim];
                match rows {
                    KeyRows::F32 => words.extend(key.iter().map(|x| x.to_bits())),
                    KeyRows::F16 => words.extend(key.as_chunks::<2>().0.iter().map(|[a, b]| {
                        let bits = |x: f32| u32::from(f16::from_f32(x).to_bits());
                        bits(*a) | bits(*b) << 16
                    })),
                }
            }
        }
        let key_words = words.len() / (num_tokens * num_heads);
        // Of tokens per channel a block a span, of others parts that begin in the middle of strips.
        let per_span = if layout.group_tokens > 1 { layout.group_tokens } else { 45 };
        let mut spans = Vec::new();
        for head in (0..num_heads).rev() {
            for start in (0..num_tokens).step_by(per_span) {
                let slot = first + start;
                let block = slot / layout.block_tokens * layout.block_bytes;
                spans.push(KeySpan {
                    coder: head as u32,
                    key: ((start * num_heads + head) * key_words) as u32,
                    place: ((head * self.head_bytes() + block) / 4) as u32,
                    slot: (slot % layout.block_tokens) as u32,
                    num_tokens: per_span.min(num_tokens - start) as u32,
                });
            }
        }
        let (keys, num_spans) = (upload(memories, &words), spans.len());
        let spans = upload(memories, &spans);
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(before);
        let codes = Output::of(memories, &words);
        let encode = EncodeKeys {
            coders: &coders,
            rows,
            key_stride: num_heads * key_words,
            max_tokens: per_span,
            num_spans,
            spans: (&spans).into(),
            keys: (&keys).into(),
            codes: codes.bound(),
        };
        site.run(&[encode.launch().unwrap()]);
        codes.read(memories, label).iter().flat_map(|x| x.to_bits().to_le_bytes()).collect()
    }

    /// Whether codes are those of the keys, and nothing else was written.
    fn check(&self, codes: &[u8], before: &[u8]) -> Result<(), String> {
        let Shape { head_dim, num_tokens, first, .. } = self.shape;
        if self.host(codes, &self.keys) != self.host(before, &self.keys) {
            return Err("codes of other tokens were written".to_owned());
        }
        let heads = codes.chunks_exact(self.head_bytes()).zip(&self.keys).zip(&self.coders);
        for (head, ((codes, keys), coder)) in heads.enumerate() {
            let mut decoded = vec![0.0; keys.len()];
            coder.decode(first, codes, &mut decoded);
            match coder.encoding().unwrap() {
                Encoding::Tokens { rule, .. } => {
                    let pairs = keys.chunks_exact(head_dim).zip(decoded.chunks_exact(head_dim));
                    for (token, (key, decoded)) in pairs.enumerate() {
                        if !is_near(&rule, key, decoded) {
                            return Err(format!("token {token} of head {head} is not near"));
                        }
                    }
                }
                Encoding::Channels { bits, group_tokens } => {
                    for (block, channel) in (0..num_tokens / group_tokens)
                        .flat_map(|block| (0..head_dim).map(move |channel| (block, channel)))
                    {
                        let column = |rows: &[f32]| -> Vec<f32> {
                            let rows = &rows[block * group_tokens * head_dim..];
                            let rows = rows.chunks_exact(head_dim).take(group_tokens);
                            rows.map(|row| row[channel]).collect()
                        };
                        if !is_channel_near(bits, &column(keys), &column(&decoded)) {
                            return Err(format!("block {block}, channel {channel} is not near"));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Codes that are wrong, and are seen to be.
    fn assert_rejects(&self, good: &[u8], before: &[u8], label: &str) {
        let mut shifted = self.keys.clone();
        shifted.iter_mut().for_each(|keys| keys.rotate_right(self.shape.head_dim));
        let mut swapped = self.keys.clone();
        swapped.rotate_right(1);
        let bits: Vec<u8> =
            good.iter().zip(before).map(|(a, b)| if a == b { *a } else { a ^ 0x88 }).collect();
        let wrong = [
            ("untouched", before.to_vec()),
            ("a token off by one", self.host(before, &shifted)),
            ("another head's keys", self.host(before, &swapped)),
            ("the upper bits of nibbles", bits),
        ];
        let mut num_tried = 0;
        for (what, codes) in wrong.iter().filter(|(_, codes)| codes != good) {
            assert!(self.check(codes, before).is_err(), "{label}: {what} is accepted");
            num_tried += 1;
        }
        assert!(num_tried >= 2, "{label}: only {num_tried} change this answer");
    }
}

/// All formats in all shapes, in whole groups of their tokens.
fn encode_on<S: Site>(sites: &[S], formats: &[&str], seed: u64) {
    let (mut num_bytes, mut num_differing, mut num_cases) = (0, 0, 0);
    for format in formats {
        let format: KeyFormat = format.parse().unwrap();
        let group_tokens = format.layout(64).unwrap().group_tokens;
        for shape in shapes() {
            num_cases += 1;
            let whole = Shape {
                num_tokens: shape.num_tokens.next_multiple_of(group_tokens),
                first: shape.first / group_tokens * group_tokens,
                ..shape
            };
            let case = Case::new(format, whole, seed + num_cases);
            let before = vec![BEFORE; case.head_bytes() * case.shape.num_heads];
            let host = case.host(&before, &case.keys);
            assert_eq!(case.check(&host, &before), Ok(()), "{format}, the host's own");
            for site in sites {
                let label = format!("{format}, case {num_cases}, on {}", site.name());
                let codes = case.device(site, &before, &label);
                assert_eq!(case.check(&codes, &before), Ok(()), "{label}, seed {}", case.seed);
                let differing =
                    codes.iter().zip(&host).filter(|(ours, hosts)| ours != hosts).count();
                assert!(differing == 0 || !site.is_exact(), "{label}: {differing} bytes differ");
                if differing > 0 {
                    println!("{label}: {differing} bytes are others than the host's");
                }
                case.assert_rejects(&codes, &before, &label);
                num_bytes +=
                    codes.iter().zip(&before).filter(|(code, before)| code != before).count();
                num_differing += differing;
            }
        }
    }
    println!("{num_differing} of {num_bytes} bytes are others than the host's");
    assert!(num_differing * 1000 <= MAX_DIFFERING * num_bytes, "{num_differing} of {num_bytes}");
}

pub(crate) fn encode_integers_on<S: Site>(sites: &[S]) {
    encode_on(sites, &INTEGER_FORMATS, 1300);
}

pub(crate) fn encode_levels_on<S: Site>(sites: &[S]) {
    encode_on(sites, &LEVEL_FORMATS, 1340);
}

pub(crate) fn encode_allocated_on<S: Site>(sites: &[S]) {
    encode_on(sites, &ALLOCATED_FORMATS, 1370);
}

pub(crate) fn encode_channels_on<S: Site>(sites: &[S]) {
    encode_on(sites, &CHANNEL_FORMATS, 1400);
}

#[test]
fn encode_integers() {
    encode_integers_on(places_or_skip());
}

#[test]
fn encode_levels() {
    encode_levels_on(places_or_skip());
}

#[test]
fn encode_allocated() {
    encode_allocated_on(places_or_skip());
}

#[test]
fn encode_channels() {
    encode_channels_on(places_or_skip());
}

/// What goes wrong in kernels, done to a right one, is seen.
#[test]
fn wrong_kernels_are_seen() {
    let shape = Shape { num_heads: 1, head_dim: 64, num_tokens: 40, first: 3, rows: KeyRows::F32 };
    let case = Case::new("alloc/2.6".parse().unwrap(), shape, 1498);
    let before = vec![BEFORE; case.head_bytes()];
    let right = ENCODE_ALLOCATED.wgsl(Variant::default());
    let replaced = |from: &str, to: &str| {
        let wrong = right.replace(from, to);
        assert_ne!(wrong, right, "{from} is in the kernel");
        wrong
    };
    let wrong = [
        ("a token off by one", replaced("span.key + token *", "span.key + (token ^ 1u) *")),
        ("a skipped barrier", replaced("workgroupBarrier();", "")),
        ("a centre forgotten", replaced("(key - own.centre)", "key")),
        (
            "nibbles in another order",
            replaced("slot % 2u * 16u + slot / 8u % 2u * 8u", "slot % 16u"),
        ),
        ("the bits of other tokens", replaced("& (mask << shift)", "")),
        ("a scale of the neighbour", replaced("token.slot) * width", "(token.slot ^ 1u)) * width")),
    ];
    for place in places_or_skip().iter().filter(|place| place.name.ends_with("Workgroup")) {
        let check = |wgsl: &str| case.check(&case.by_kernel(place, wgsl, &before), &before);
        assert_eq!(check(&right), Ok(()), "{}", place.name);
        for (what, wgsl) in &wrong {
            assert!(check(wgsl).is_err(), "{what}, on {}", place.name);
        }
    }
}

impl Case {
    /// What a kernel as it is written makes of the keys of one head under `alloc`.
    fn by_kernel(&self, place: &Place, wgsl: &str, before: &[u8]) -> Vec<u8> {
        let Shape { head_dim, num_tokens, first, .. } = self.shape;
        let Some(Encoding::Tokens { rule: TokenRule::Allocated { channels }, strips }) =
            self.coders[0].encoding()
        else {
            unreachable!("the format is `alloc`")
        };
        let packed = |plane: &CodePlane| {
            plane.first_channel | u32::from(plane.bits) << 16 | u32::from(plane.shift) << 24
        };
        let planes: Vec<u32> = strips.planes.iter().map(packed).collect();
        let words = |of: &AllocatedChannel| {
            let numbers = [of.centre, of.step, of.weight, of.middle, of.usual].map(f32::to_bits);
            [&[of.channel], &numbers[..]].concat()
        };
        let channels: Vec<u32> = channels.iter().flat_map(words).collect();
        let (dim, num_planes) = (head_dim as u32, planes.len() as u32);
        let params = [dim, dim, 0, num_planes, 4, strips.num_bytes() as u32 / 4, 0, 0];
        let (slot, num_tokens) = (first as u32, num_tokens as u32);
        let span = KeySpan { coder: 0, key: 0, place: 0, slot, num_tokens };
        let gpu = place.device.gpu();
        let bindings = ENCODE_ALLOCATED.bindings.iter().map(|access| match access {
            heterokv_shaders::Access::Read => Access::Read,
            heterokv_shaders::Access::Write => Access::Write,
        });
        let bindings: Vec<Access> = bindings.collect();
        let source =
            KernelSource { name: "encode_allocated", wgsl, bindings: &bindings, constants: &[] };
        let kernel = gpu.kernel(&source).unwrap();
        let (span, keys) = (upload(gpu, &[span]), upload(gpu, &self.keys[0]));
        let (planes, channels) = (upload(gpu, &planes), upload(gpu, &channels));
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(before);
        let codes = Output::of(gpu, &words);
        let [span, keys, planes, channels] = [&span, &keys, &planes, &channels].map(Bound::all);
        let buffers = [span, keys, planes, channels, codes.bound()];
        let mut commands = Commands::new(gpu);
        commands.dispatch(&kernel, &params, &buffers, [1, num_tokens, 1]).unwrap();
        commands.submit().unwrap();
        let codes = codes.read(gpu, "encode_allocated");
        codes.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect()
    }
}
