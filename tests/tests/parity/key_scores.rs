//! Scores of coded keys that do not lie in nibble planes.

use heterokv_attn::device::{ScoreGroups, ScoreKeys, Span};
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level};
use heterokv_testkit::{Controls, Inputs};

use crate::devices::{Expected, places_or_skip};
use crate::sites::{Output, Site, upload};

/// Query and KV heads, channels, and coded tokens: one, around a strip and a span, and more.
const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 64, 1), (9, 3, 64, 127), (4, 1, 128, 129), (16, 2, 96, 33), (9, 1, 64, 300)];

/// Every form of keys, and every width of integers per channel.
const KEY_FORMATS: [&str; 11] = [
    "f16",
    "int8-token",
    "rot-int8-token",
    "alloc/8",
    "int2-channel/32",
    "int3-channel/128",
    "int4-channel/64",
    "int6-channel/32",
    "int8-channel/32",
    "int8-channel/128",
    "rot-int4-channel/32",
];

/// Tables of several groups at a time, of one, and of fewer heads than there are.
const GROUP_FORMATS: [&str; 5] = ["pq/4x256", "pq/2x32", "opq/8x64", "pq/8x512", "pq/8x1024"];

/// Codes and queries of some KV heads, and the scores that they should have.
struct Case {
    group_size: usize,
    head_dim: usize,
    num_tokens: usize,
    coders: Vec<KeyCoder>,
    q: Vec<f32>,
    sm_scale: f32,
    codes: Vec<u8>,
    spans: Vec<Span>,
    expected: Expected,
    seed: u64,
}

impl Case {
    fn new(format: KeyFormat, shape: (usize, usize, usize, usize), seed: u64) -> Self {
        let (num_qo_heads, num_kv_heads, head_dim, num_tokens) = shape;
        let group_size = num_qo_heads / num_kv_heads;
        let mut inputs = Inputs::new(seed);
        let q = inputs.gaussian_rows(num_qo_heads, head_dim, 1.0);
        let sm_scale = 1.0 / (head_dim as f32).sqrt();
        let (mut coders, mut codes, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let mut exact = vec![0.0; num_qo_heads * num_tokens];
        let mut naive = vec![0.0; num_qo_heads * num_tokens];
        let mut norm = 0.0f64;
        for kv_head in 0..num_kv_heads {
            let layout = format.layout(head_dim).unwrap();
            let num_coded = num_tokens.next_multiple_of(layout.group_tokens);
            let num_fitted = layout.min_fit_tokens.max(num_coded);
            let keys = inputs.gaussian_rows(num_fitted, head_dim, 1.5);
            let (energy, level) = (vec![1.0; head_dim], Level::detect());
            let seed = kv_head as u64;
            let input = FitInput { head_dim, keys: &keys, query_energy: &energy, seed, level };
            let coder = KeyCoder::fit(format, &input).unwrap();
            let mut of_head = vec![0; layout.bytes(num_coded).next_multiple_of(4)];
            coder.encode(level, 0, &keys[..num_coded * head_dim], &mut of_head).unwrap();
            let mut decoded = vec![0.0; num_coded * head_dim];
            coder.decode(0, &of_head, &mut decoded);
            for first in (0..num_tokens).step_by(Span::TOKENS) {
                let bytes = first / layout.block_tokens * layout.block_bytes;
                assert!(bytes.is_multiple_of(4), "{format}: spans begin with words");
                spans.push(Span {
                    kv_head: kv_head as u32,
                    place: ((codes.len() + bytes) / 4) as u32,
                    num_tokens: Span::TOKENS.min(num_tokens - first) as u32,
                    first_token: first as u32,
                });
            }
            codes.extend(of_head);
            for head in 0..group_size {
                let qo_head = kv_head * group_size + head;
                let query = &q[qo_head * head_dim..][..head_dim];
                let keys = decoded.chunks_exact(head_dim).take(num_tokens);
                for (token, key) in keys.enumerate() {
                    let pairs = || query.iter().zip(key);
                    let terms = || pairs().map(|(&q, &k)| f64::from(q) * f64::from(k));
                    let at = qo_head * num_tokens + token;
                    exact[at] = f64::from(sm_scale) * terms().sum::<f64>();
                    naive[at] = pairs().map(|(q, k)| q * sm_scale * k).sum();
                    // A scale and a zero make terms that cancel, larger than those of the key.
                    let size = 4.0 * terms().map(f64::abs).sum::<f64>();
                    norm = norm.max(f64::from(sm_scale) * size);
                }
            }
            coders.push(coder);
        }
        // A kernel that takes spans in their order as tokens in theirs is wrong.
        spans.reverse();
        let controls = Controls { num_heads: 1, head_dim: num_tokens };
        let expected = Expected { exact, naive, norm, controls };
        Self { group_size, head_dim, num_tokens, coders, q, sm_scale, codes, spans, expected, seed }
    }

    /// The queries of each KV head's group, with its coder.
    fn groups(&self) -> impl Iterator<Item = (&KeyCoder, &[f32])> {
        self.coders.iter().zip(self.q.chunks_exact(self.group_size * self.head_dim))
    }
}

/// All formats in all shapes on all sites; `score` runs a case on one.
fn for_each<S: Site>(
    sites: &[S],
    formats: &[&str],
    seed: u64,
    score: impl Fn(&Case, &S, &Output<S::Memories>),
) {
    let mut num_cases = 0;
    for format in formats {
        for shape in SHAPES {
            num_cases += 1;
            let case = Case::new(format.parse().unwrap(), shape, seed + num_cases);
            for site in sites {
                let scores = Output::new(site.memories(), case.expected.exact.len());
                score(&case, site, &scores);
                let label = format!("{format}, {shape:?}, on {}", site.name());
                case.expected.check(&scores.read(site.memories(), &label), &label, case.seed);
            }
        }
    }
}

#[test]
fn score_keys() {
    score_keys_on(places_or_skip());
}

pub(crate) fn score_keys_on<S: Site>(sites: &[S]) {
    for_each(sites, &KEY_FORMATS, 1500, |case, site, scores| {
        let (mut queries, mut finals, mut codes_form) = (Vec::new(), Vec::new(), None);
        for (coder, q) in case.groups() {
            let of_group = coder.channel_queries(q, case.sm_scale).unwrap();
            queries.extend(of_group.queries);
            finals.extend(of_group.finals.into_iter().flatten());
            codes_form = Some(of_group.codes);
        }
        let memories = site.memories();
        let [queries, finals] = [upload(memories, &queries), upload(memories, &finals)];
        let [spans, codes] = [upload(memories, &case.spans), upload(memories, &case.codes)];
        let score = ScoreKeys {
            group_size: case.group_size,
            head_dim: case.head_dim,
            codes_form: codes_form.unwrap(),
            score_stride: case.num_tokens,
            num_spans: case.spans.len(),
            spans: (&spans).into(),
            codes: (&codes).into(),
            queries: (&queries).into(),
            finals: (&finals).into(),
            scores: scores.bound(),
        };
        site.run(&[score.launch().unwrap()]);
    });
}

#[test]
fn score_groups() {
    score_groups_on(places_or_skip());
}

pub(crate) fn score_groups_on<S: Site>(sites: &[S]) {
    for_each(sites, &GROUP_FORMATS, 1600, |case, site, scores| {
        let (mut tables, mut shape) = (Vec::new(), None);
        for (coder, q) in case.groups() {
            let of_group = coder.group_tables(q, case.sm_scale).unwrap();
            shape = Some((of_group.num_groups, of_group.code_bits));
            tables.extend(of_group.tables);
        }
        let memories = site.memories();
        let (num_groups, code_bits) = shape.unwrap();
        let [spans, codes] = [upload(memories, &case.spans), upload(memories, &case.codes)];
        let tables = upload(memories, &tables);
        let score = ScoreGroups {
            group_size: case.group_size,
            num_groups,
            code_bits,
            score_stride: case.num_tokens,
            num_spans: case.spans.len(),
            spans: (&spans).into(),
            codes: (&codes).into(),
            tables: (&tables).into(),
            scores: scores.bound(),
        };
        site.run(&[score.launch().unwrap()]);
    });
}
