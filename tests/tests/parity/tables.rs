//! What is made of a token before attention: rows on pages, energies of queries, and tables of queries.

use half::f16;
use heterokv_attn::HeadShape;
use heterokv_attn::device::{FrameQueries, Launch, QueryEnergy, RowSlot, StoreRows};
use heterokv_quant::{ChannelCodes, FitInput, FrameCodes, KeyCoder, KeyFormat, Level, Tail};
use heterokv_testkit::{Controls, Inputs};

use crate::devices::{Expected, places_or_skip};
use crate::sites::{Output, Site, upload};

#[test]
fn store_rows() {
    store_rows_on(places_or_skip());
}

/// Rows land where the slots say, rounded to the nearest f16 or to a neighbour of it, and nowhere else.
pub(crate) fn store_rows_on<S: Site>(sites: &[S]) {
    for site in sites {
        for (case, (num_kv_heads, head_dim, page_tokens)) in
            [(1, 2, 1), (3, 64, 8), (2, 80, 16), (1, 256, 4)].into_iter().enumerate()
        {
            let mut inputs = Inputs::new(1500 + case as u64);
            let shape = HeadShape::new(num_kv_heads, num_kv_heads, head_dim).unwrap();
            let tokens = 5;
            let mut k = inputs.gaussian_rows(tokens, shape.kv_row_len(), 3.0);
            let v = inputs.gaussian_rows(tokens, shape.kv_row_len(), 1.0);
            // Beyond f16 and below its normal numbers.
            k[0] = 1e6;
            k[1] = -3e-6;
            let page_words = page_tokens * head_dim;
            let num_rows = tokens * num_kv_heads;
            let mut slots = Vec::new();
            for row in 0..num_rows {
                // The last rows first, a page each, in a slot that changes.
                let page = num_rows - 1 - row;
                let slot = row % page_tokens;
                slots.push(RowSlot {
                    token: (row / num_kv_heads) as u32,
                    kv_head: (row % num_kv_heads) as u32,
                    place: (page * page_words + slot * head_dim / 2) as u32,
                });
            }
            let memories = site.memories();
            let before = vec![-1.0f32; num_rows * page_words];
            let rows = Output::of(memories, &before);
            let [on_k, on_v] = [upload(memories, &k), upload(memories, &v)];
            let on_slots = upload(memories, &slots);
            let store = StoreRows {
                shape,
                page_tokens,
                num_slots: slots.len(),
                slots: (&on_slots).into(),
                k: (&on_k).into(),
                v: (&on_v).into(),
                rows: rows.bound(),
            };
            // In two dimensions, some beyond the slots.
            let grid = [4, slots.len().div_ceil(4) as u32, 1];
            site.run(&[Launch { grid, ..store.launch().unwrap() }]);
            let label = format!("store_rows, case {case}, on {}", site.name());
            let stored = rows.read(memories, &label);
            let stored: Vec<u32> = stored.into_iter().map(f32::to_bits).collect();
            let mut left = vec![true; stored.len()];
            for slot in &slots {
                let from = (slot.token as usize * num_kv_heads + slot.kv_head as usize) * head_dim;
                for (rows, at) in [(&k, 0), (&v, page_tokens * head_dim / 2)] {
                    for (i, pair) in rows[from..][..head_dim].chunks(2).enumerate() {
                        let at = slot.place as usize + at + i;
                        left[at] = false;
                        for (half, &x) in pair.iter().enumerate() {
                            let bits = (stored[at] >> (16 * half)) as u16;
                            let x = x.clamp(-65504.0, 65504.0);
                            let nearest = f16::from_f32(x);
                            let actual = f16::from_bits(bits);
                            let most = u16::from(!site.is_exact());
                            let close = bits.abs_diff(nearest.to_bits()) <= most;
                            assert!(close, "{label}: {actual} of {x}");
                        }
                    }
                }
            }
            let untouched = stored.iter().zip(&left).filter(|(_, left)| **left);
            assert!(untouched.clone().count() > 0 || page_tokens == 1, "{label}");
            assert!(untouched.clone().all(|(word, _)| *word == (-1.0f32).to_bits()), "{label}");
        }
    }
}

#[test]
fn query_energy() {
    query_energy_on(places_or_skip());
}

pub(crate) fn query_energy_on<S: Site>(sites: &[S]) {
    for site in sites {
        for (case, (num_qo_heads, num_kv_heads, head_dim, tokens)) in
            [(1, 1, 2, 1), (9, 3, 64, 64), (4, 1, 80, 65), (2, 2, 256, 200)].into_iter().enumerate()
        {
            let mut inputs = Inputs::new(1600 + case as u64);
            let shape = HeadShape::new(num_qo_heads, num_kv_heads, head_dim).unwrap();
            let q = inputs.gaussian_rows(tokens, shape.qo_row_len(), 2.0);
            let stretches = tokens.div_ceil(QueryEnergy::STRETCH);
            let len = stretches * num_kv_heads * head_dim;
            let (mut exact, mut naive) = (vec![0.0f64; len], vec![0.0f32; len]);
            for (token, row) in q.chunks_exact(shape.qo_row_len()).enumerate() {
                for (head, query) in row.chunks_exact(head_dim).enumerate() {
                    let kv_head = head / shape.group_size();
                    let at = (token / QueryEnergy::STRETCH * num_kv_heads + kv_head) * head_dim;
                    for (c, &x) in query.iter().enumerate() {
                        exact[at + c] += f64::from(x) * f64::from(x);
                        naive[at + c] += x * x;
                    }
                }
            }
            let controls = Controls { num_heads: num_kv_heads, head_dim };
            let expected = Expected { exact, naive, norm: 64.0, controls };
            let memories = site.memories();
            let on_device = upload(memories, &q);
            let energy = Output::new(memories, len);
            let of = QueryEnergy { shape, tokens, q: (&on_device).into(), energy: energy.bound() };
            site.run(&[of.launch().unwrap()]);
            let label = format!("query_energy, case {case}, on {}", site.name());
            expected.check(&energy.read(memories, &label), &label, inputs.seed());
        }
    }
}

/// Formats of every kind of frame: plain, scaled and reordered, rotated, with a codebook and without; of nibble planes, and
/// of codes that lie channel by channel.
const FORMATS: [&str; 11] = [
    "int4-token",
    "int6-token",
    "alloc/2.5",
    "alloc/6",
    "lm2",
    "lm4-plain",
    "rot-int4-token",
    "f16",
    "alloc/8",
    "rot-int8-token",
    "rot-int4-channel/32",
];

#[test]
fn frame_queries() {
    frame_queries_on(places_or_skip());
}

pub(crate) fn frame_queries_on<S: Site>(sites: &[S]) {
    for (case, (name, (num_qo_heads, num_kv_heads, head_dim))) in FORMATS
        .iter()
        .flat_map(|name| {
            [(1, 1, 64), (9, 3, 64), (8, 2, 128), (6, 2, 80)].map(|shape| (name, shape))
        })
        .enumerate()
    {
        let mut inputs = Inputs::new(1700 + case as u64);
        let shape = HeadShape::new(num_qo_heads, num_kv_heads, head_dim).unwrap();
        let group_size = shape.group_size();
        let format: KeyFormat = name.parse().unwrap();
        let q = inputs.gaussian_rows(num_qo_heads, head_dim, 1.0);
        // The class has the KV heads of the layer but the first, where there are more, the last one first.
        let heads: Vec<u32> = (num_kv_heads.min(2) as u32 - 1..num_kv_heads as u32).rev().collect();
        let (mut channels, mut planes, mut frames) = (Vec::new(), Vec::new(), Vec::new());
        let (mut exact, mut naive, mut exact_finals) = (Vec::new(), Vec::new(), Vec::new());
        for &head in &heads {
            let keys = inputs.gaussian_rows(512, head_dim, 1.5);
            let energy: Vec<f32> = (0..head_dim).map(|c| 1.0 + c as f32).collect();
            let input = FitInput {
                head_dim,
                keys: &keys,
                query_energy: &energy,
                seed: 0,
                level: Level::detect(),
            };
            let coder = KeyCoder::fit(format, &input).unwrap();
            let frame = coder.query_frame().unwrap();
            let queries = &q[head as usize * group_size * head_dim..][..group_size * head_dim];
            // What the host's own kernels are made by, from the format itself and not from its frame.
            let (tables, finals) = match frame.codes {
                FrameCodes::Planes { .. } => {
                    let tables = coder.plane_tables(queries, shape.sm_scale).unwrap();
                    (tables.tables, tables.finals)
                }
                FrameCodes::Channels(_) => {
                    let framed = coder.channel_queries(queries, shape.sm_scale).unwrap();
                    (framed.queries, framed.finals)
                }
            };
            naive.extend(&tables);
            exact.extend(tables.iter().map(|&x| f64::from(x)));
            exact_finals.extend(finals.into_iter().flatten());
            channels.extend(FrameQueries::channels_of(&frame));
            planes.extend(FrameQueries::plane_words(&frame));
            frames.push(frame);
        }
        let (num_planes, codebook, has_zero) = match &frames[0].codes {
            FrameCodes::Planes { planes, levels, tail } => {
                (planes.len(), *levels, *tail == Tail::ScaleZero)
            }
            FrameCodes::Channels(codes) => {
                // A binding is never empty.
                planes.push(0);
                (0, None, *codes == ChannelCodes::Bytes { tail: Tail::ScaleZero })
            }
        };
        let row_len = if num_planes == 0 { head_dim } else { num_planes * 16 };
        let largest = exact.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let controls = Controls { num_heads: exact.len() / 16, head_dim: 16 };
        let expected = Expected { exact, naive, norm: 8.0 * largest, controls };
        for site in sites {
            let memories = site.memories();
            let [on_heads, on_planes] = [upload(memories, &heads), upload(memories, &planes)];
            let on_channels = upload(memories, &channels);
            let levels = upload(memories, &codebook.unwrap_or_default());
            let on_q = upload(memories, &q);
            let num_queries = heads.len() * group_size;
            let tables = Output::new(memories, num_queries * row_len);
            let finals = Output::new(memories, num_queries * 4);
            let prepare = FrameQueries {
                shape,
                num_heads: heads.len(),
                num_planes,
                transform_block: frames[0].transform_block,
                has_levels: codebook.is_some(),
                kv_heads: (&on_heads).into(),
                channels: (&on_channels).into(),
                planes: (&on_planes).into(),
                levels: (&levels).into(),
                q: (&on_q).into(),
                tables: tables.bound(),
                finals: finals.bound(),
            };
            site.run(&[prepare.launch().unwrap()]);
            let label = format!("frame_queries {name}, case {case}, on {}", site.name());
            expected.check(&tables.read(memories, &label), &label, inputs.seed());
            let size = exact_finals.iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let finals = finals.read(memories, &label);
            // A sum is looked at where tokens have a zero.
            let is_seen = |i: &usize| i % 4 != 1 || has_zero;
            let off =
                (0..finals.len()).filter(is_seen).map(|i| (finals[i] - exact_finals[i]).abs());
            let off = off.fold(0.0, f32::max);
            assert!(off <= 1e-5 * size, "{label}: offsets, sums and biases are off by {off}");
        }
    }
}
