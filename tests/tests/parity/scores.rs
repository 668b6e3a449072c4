//! Scores of coded keys in nibble planes.

use half::f16;
use heterokv_attn::device::{ScorePlanes, Span};
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level, Tail};
use heterokv_testkit::{Controls, Inputs, Sabotage};

use crate::devices::{Expected, places_or_skip};
use crate::sites::{Output, Site, upload};

/// Keys that every format can be fitted on.
const FIT_TOKENS: usize = 512;

/// Every kind of tail and of table, at widths that fill a tile of planes and that do not.
const FORMATS: [&str; 10] = [
    "int4-token",
    "int2-token",
    "int6-token",
    "lm1",
    "lm2",
    "lm4-plain",
    "alloc/1",
    "alloc/2.5",
    "alloc/6",
    "pq/4x16",
];

/// Query and KV heads, channels, and coded tokens: one, around a strip and a span, and more.
const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 64, 1), (9, 3, 64, 127), (4, 1, 128, 129), (16, 2, 128, 33), (9, 1, 64, 500)];

#[test]
fn score_planes() {
    let places = places_or_skip();
    score_planes_on(places);
    if !places.is_empty() && !places.iter().any(|place| place.device.gpu().has_f16()) {
        println!("SKIPPED: scores in half precision, which no device here computes in");
    }
}

pub(crate) fn score_planes_on<S: Site>(sites: &[S]) {
    let (mut has_half, mut num_rounded) = (false, 0);
    for (case, (format, (num_qo_heads, num_kv_heads, head_dim, num_tokens))) in
        FORMATS.iter().flat_map(|format| SHAPES.map(|shape| (format, shape))).enumerate()
    {
        let mut inputs = Inputs::new(900 + case as u64);
        let group_size = num_qo_heads / num_kv_heads;
        let format: KeyFormat = format.parse().unwrap();
        let q = inputs.gaussian_rows(num_qo_heads, head_dim, 1.0);
        let sm_scale = 1.0 / (head_dim as f32).sqrt();
        let (mut codes, mut spans) = (Vec::new(), Vec::new());
        let (mut tables, mut finals) = (Vec::new(), Vec::new());
        let mut exact = vec![0.0; num_qo_heads * num_tokens];
        let mut naive = vec![0.0; num_qo_heads * num_tokens];
        let mut to_select = vec![0.0; num_qo_heads * num_tokens];
        let (mut num_planes, mut tail, mut norm) = (0, None, 0.0f64);
        for kv_head in 0..num_kv_heads {
            let keys = inputs.gaussian_rows(FIT_TOKENS, head_dim, 1.5);
            let energy = vec![1.0; head_dim];
            let input = FitInput {
                head_dim,
                keys: &keys,
                query_energy: &energy,
                seed: kv_head as u64,
                level: Level::detect(),
            };
            let coder = KeyCoder::fit(format, &input).unwrap();
            let mut of_head = vec![0; coder.layout().bytes(num_tokens)];
            let keys = &keys[..num_tokens * head_dim];
            coder.encode(Level::detect(), 0, keys, &mut of_head).unwrap();
            let mut decoded = vec![0.0; keys.len()];
            coder.decode(0, &of_head, &mut decoded);
            let queries = &q[kv_head * group_size * head_dim..][..group_size * head_dim];
            let of_queries = coder.plane_tables(queries, sm_scale).unwrap();
            (num_planes, tail) = (of_queries.num_planes, Some(of_queries.tail));
            // Codes that are about their middle cancel with the offset: the terms are larger than the score.
            let largest =
                |entries: &[f32]| entries.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for of_head in of_queries.tables.chunks(16 * num_planes) {
                let terms: f32 = of_head.chunks(16).map(largest).sum();
                norm = norm.max(f64::from(terms));
            }
            for head in 0..group_size {
                let table = &of_queries.tables[head * num_planes * 16..][..num_planes * 16];
                for token in 0..num_tokens {
                    let strip = &of_head[token / 32 * coder.layout().block_bytes..];
                    let at = (kv_head * group_size + head) * num_tokens + token;
                    to_select[at] = half_bound(table, of_queries.tail, strip, token % 32);
                }
            }
            tables.extend(of_queries.tables);
            finals.extend(of_queries.finals.into_iter().flatten());
            let strip_bytes = coder.layout().block_bytes;
            for first in (0..num_tokens).step_by(Span::TOKENS) {
                spans.push(Span {
                    kv_head: kv_head as u32,
                    place: ((codes.len() + first / 32 * strip_bytes) / 4) as u32,
                    num_tokens: Span::TOKENS.min(num_tokens - first) as u32,
                    first_token: first as u32,
                });
            }
            codes.extend(of_head);
            for head in 0..group_size {
                let query = &queries[head * head_dim..][..head_dim];
                for (token, key) in decoded.chunks_exact(head_dim).enumerate() {
                    let at = (kv_head * group_size + head) * num_tokens + token;
                    let pairs = || query.iter().zip(key);
                    let sum: f64 = pairs().map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    exact[at] = f64::from(sm_scale) * sum;
                    naive[at] = pairs().map(|(q, k)| q * sm_scale * k).sum();
                }
            }
        }
        // A kernel that takes spans in their order as tokens in theirs is wrong.
        spans.reverse();
        let controls = Controls { num_heads: 1, head_dim: num_tokens };
        let expected = Expected { exact, naive, norm, controls };
        for site in sites {
            let memories = site.memories();
            let [codes, tables, finals] =
                [upload(memories, &codes), upload(memories, &tables), upload(memories, &finals)];
            let num_spans = spans.len();
            let spans = upload(memories, &spans);
            let scores = Output::new(memories, num_qo_heads * num_tokens);
            let score = ScorePlanes {
                group_size,
                num_planes,
                tail: tail.unwrap(),
                score_stride: num_tokens,
                num_spans,
                spans: (&spans).into(),
                codes: (&codes).into(),
                tables: (&tables).into(),
                finals: (&finals).into(),
                scores: scores.bound(),
            };
            site.run(&[score.launch().unwrap()]);
            let label = format!("score_planes {format}, case {case}, on {}", site.name());
            let exactly = scores.read(memories, &label);
            expected.check(&exactly, &label, inputs.seed());
            let scores = Output::new(memories, num_qo_heads * num_tokens);
            if !site.score_to_select(&ScorePlanes { scores: scores.bound(), ..score }) {
                continue;
            }
            let rounded = scores.read(memories, &label);
            let is_within = |scores: &[f32]| {
                let apart = scores.iter().zip(&expected.exact).zip(&to_select);
                apart.fold(true, |all, ((score, exact), bound)| {
                    let slack = 1e-5 * (norm + exact.abs());
                    all & ((f64::from(*score) - exact).abs() <= bound + slack)
                })
            };
            assert!(is_within(&rounded), "{label}, in half precision");
            let sabotaged = [Sabotage::SignFlip, Sabotage::NotANumber, Sabotage::AllZero];
            for sabotage in sabotaged {
                let wrong = expected.controls.apply(sabotage, &rounded);
                assert!(!is_within(&wrong), "{label}, in half precision: {sabotage:?} is accepted");
            }
            has_half = true;
            num_rounded += rounded.iter().zip(&exactly).filter(|(a, b)| a != b).count();
        }
    }
    // Half precision is another one.
    assert_eq!(num_rounded > 0, has_half, "{num_rounded} scores differ");
}

/// What the head of the shader says of sums in half precision: of the token in a slot of a strip, whose tail is read here
/// by the layout of the format.
fn half_bound(table: &[f32], tail: Tail, strip: &[u8], slot: usize) -> f64 {
    let entries = table.chunks_exact(16).zip(strip.chunks_exact(16)).map(|(entries, plane)| {
        let nibble = plane[slot % 8 * 2 + slot / 8 % 2] >> (slot / 16 * 4) & 15;
        f64::from(entries[usize::from(nibble)].abs())
    });
    let num_planes = table.len() / 16;
    let tails = &strip[16 * num_planes..];
    let half = |i: usize| f16::from_le_bytes([tails[2 * i], tails[2 * i + 1]]).to_f64();
    let scale = match tail {
        Tail::None => 1.0,
        Tail::Scale | Tail::ScaleZero => half(slot).abs(),
        Tail::Exponent => 2.0f64.powf((f64::from(tails[slot]) - 128.0) / 8.0),
    };
    let unit = 16.0 * 2.0f64.powi(-11);
    scale * (unit / (1.0 - unit) * entries.sum::<f64>() + num_planes as f64 * 2.0f64.powi(-14))
}
