//! Attention over exact rows in parts, and the merge of states.

use half::f16;
use heterokv_attn::HeadShape;
use heterokv_attn::device::{AttendRows, MergeStates, Prefill, RowPart};
use heterokv_attn::reference::causal_attention;
use heterokv_testkit::{Controls, Inputs};

use crate::devices::{Expected, places_or_skip};
use crate::sites::{Output, Site, upload};

/// Exact rows of several KV heads, on pages that lie in no order.
struct Rows {
    shape: HeadShape,
    /// Keys and values by KV head `[num_tokens, head_dim]`, as f16 holds them.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    parts: Vec<RowPart>,
    pages: Vec<u32>,
    memory: Vec<u32>,
    q: Vec<f32>,
}

impl Rows {
    /// `part_tokens` by KV head: the tokens of each of its parts, whole pages but for the last.
    fn random(
        inputs: &mut Inputs,
        shape: HeadShape,
        page_tokens: usize,
        part_tokens: &[Vec<usize>],
    ) -> Self {
        let head_dim = shape.head_dim;
        let half = |rows: Vec<f32>| -> Vec<f32> {
            rows.into_iter().map(|x| f16::from_f32(x).to_f32()).collect()
        };
        let page_words = page_tokens * head_dim;
        let num_pages: usize =
            part_tokens.iter().flatten().map(|n| n.div_ceil(page_tokens) + 1).sum();
        // Places in falling order: a kernel that takes pages as they lie is wrong.
        let mut places = (0..num_pages).rev().map(|page| (page * page_words) as u32);
        let mut memory = vec![u32::from(f16::NAN.to_bits()) * 0x1_0001; num_pages * page_words];
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut parts, mut pages) = (Vec::new(), Vec::new());
        for (kv_head, of_head) in part_tokens.iter().enumerate() {
            let num_tokens: usize = of_head.iter().sum();
            let k = half(inputs.gaussian_rows(num_tokens, head_dim, 1.5));
            let v = half(inputs.gaussian_rows(num_tokens, head_dim, 1.0));
            let mut first = 0;
            for &num_tokens in of_head {
                let first_page = pages.len() as u32;
                // As a window begins whose first tokens have left.
                let first_slot = parts.len() % page_tokens;
                parts.push(RowPart {
                    kv_head: kv_head as u32,
                    first_page,
                    num_tokens: num_tokens as u32,
                    first_slot: first_slot as u32,
                    state: parts.len() as u32,
                });
                for start in (0..first_slot + num_tokens).step_by(page_tokens) {
                    let place = places.next().unwrap();
                    pages.push(place);
                    let end = (start + page_tokens).min(first_slot + num_tokens);
                    for slot in start.max(first_slot)..end {
                        let (token, t) = (first + slot - first_slot, slot - start);
                        let row = |rows: &[f32]| -> Vec<u32> {
                            let row = &rows[token * head_dim..][..head_dim];
                            let bits = |x: f32| u32::from(f16::from_f32(x).to_bits());
                            row.as_chunks::<2>()
                                .0
                                .iter()
                                .map(|[a, b]| bits(*a) | bits(*b) << 16)
                                .collect()
                        };
                        let at = place as usize + t * head_dim / 2;
                        memory[at..][..head_dim / 2].copy_from_slice(&row(&k));
                        memory[at + page_words / 2..][..head_dim / 2].copy_from_slice(&row(&v));
                    }
                }
                first += num_tokens;
            }
            keys.push(k);
            values.push(v);
        }
        let q = inputs.gaussian_rows(shape.num_qo_heads, head_dim, 1.5);
        Self { shape, keys, values, parts, pages, memory, q }
    }

    /// Output and lse of query head `head` over tokens `first .. first + num` of its KV head.
    fn state(&self, head: usize, first: usize, num: usize) -> (Vec<f64>, f64) {
        let HeadShape { head_dim, sm_scale, .. } = self.shape;
        let kv_head = head / self.shape.group_size();
        let query = &self.q[head * head_dim..][..head_dim];
        let rows = |rows: &'_ [f32], t: usize| -> Vec<f64> {
            rows[(first + t) * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect()
        };
        let score = |t: usize| {
            let key = rows(&self.keys[kv_head], t);
            let dot: f64 = query.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
            f64::from(sm_scale) * dot
        };
        let scores: Vec<f64> = (0..num).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut out = vec![0.0; head_dim];
        if num == 0 {
            return (out, largest);
        }
        let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        for (t, s) in scores.iter().enumerate() {
            let weight = (s - largest).exp() / total;
            let value = rows(&self.values[kv_head], t);
            out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * v);
        }
        (out, largest + total.ln())
    }

    /// The states of all parts, and their lse.
    fn states(&self, part_tokens: &[Vec<usize>]) -> (Expected, Vec<f64>) {
        let group_size = self.shape.group_size();
        let (mut exact, mut naive, mut exact_lse) = (Vec::new(), Vec::new(), Vec::new());
        for (kv_head, of_head) in part_tokens.iter().enumerate() {
            let mut first = 0;
            for &num in of_head {
                for head in kv_head * group_size..(kv_head + 1) * group_size {
                    let (out, lse) = self.state(head, first, num);
                    exact.extend(out);
                    exact_lse.push(lse);
                    naive.extend(self.naive(head, first, num).0);
                }
                first += num;
            }
        }
        let controls = Controls { num_heads: group_size, head_dim: self.shape.head_dim };
        (Expected { exact, naive, norm: 8.0, controls }, exact_lse)
    }

    /// The same as plain f32 code gives it.
    fn naive(&self, head: usize, first: usize, num: usize) -> (Vec<f32>, f32) {
        let HeadShape { head_dim, sm_scale, .. } = self.shape;
        let kv_head = head / self.shape.group_size();
        let query = &self.q[head * head_dim..][..head_dim];
        let row = |rows: &'_ [f32], t: usize| rows[(first + t) * head_dim..][..head_dim].to_vec();
        let scores: Vec<f32> = (0..num)
            .map(|t| {
                let key = row(&self.keys[kv_head], t);
                query.iter().zip(key).map(|(q, k)| sm_scale * q * k).sum()
            })
            .collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut out = vec![0.0; head_dim];
        if num == 0 {
            return (out, largest);
        }
        let total: f32 = scores.iter().map(|s| (s - largest).exp()).sum();
        for (t, s) in scores.iter().enumerate() {
            let weight = (s - largest).exp() / total;
            let value = row(&self.values[kv_head], t);
            out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * v);
        }
        (out, largest + total.ln())
    }
}

/// Heads, channels, tokens of a page, and the tokens of the parts of each KV head.
fn cases() -> Vec<(HeadShape, usize, Vec<Vec<usize>>)> {
    let shape = |qo, kv, dim| HeadShape::new(qo, kv, dim).unwrap();
    vec![
        (shape(1, 1, 2), 4, vec![vec![1]]),
        // SmolLM2's heads, around the 64 tokens of a tile.
        (shape(9, 3, 64), 16, vec![vec![63], vec![64], vec![65]]),
        // Llama 3's, ragged, some KV heads without tokens.
        (shape(8, 2, 128), 32, vec![vec![128, 32, 7], vec![]]),
        (shape(6, 3, 80), 8, vec![vec![200, 13], vec![0], vec![8, 8, 1]]),
        (shape(4, 1, 256), 64, vec![vec![192, 130]]),
    ]
}

#[test]
fn attend_rows() {
    attend_rows_on(places_or_skip());
}

pub(crate) fn attend_rows_on<S: Site>(sites: &[S]) {
    for (case, (shape, page_tokens, part_tokens)) in cases().into_iter().enumerate() {
        let mut inputs = Inputs::new(700 + case as u64);
        let rows = Rows::random(&mut inputs, shape, page_tokens, &part_tokens);
        let group_size = shape.group_size();
        let (states, exact_lse) = rows.states(&part_tokens);
        for site in sites {
            let memories = site.memories();
            let [parts, pages, memory, q] = [
                upload(memories, &rows.parts),
                upload(memories, &rows.pages),
                upload(memories, &rows.memory),
                upload(memories, &rows.q),
            ];
            let num_states = rows.parts.len() * group_size;
            let out = Output::new(memories, num_states * shape.head_dim);
            let lse = Output::new(memories, num_states);
            let attend = AttendRows {
                shape,
                page_tokens,
                num_parts: rows.parts.len(),
                parts: (&parts).into(),
                pages: (&pages).into(),
                rows: (&memory).into(),
                q: (&q).into(),
                writes_out: true,
                num_states: rows.parts.len(),
                out: out.bound(),
                lse: lse.bound(),
            };
            site.run(&[attend.launch().unwrap()]);
            let label = format!("attend_rows, case {case}, on {}", site.name());
            states.check(&out.read(memories, &label), &label, inputs.seed());
            check_lse(&lse.read(memories, &label), &exact_lse, &label);
            // The lse alone, which leaves the outputs as they are.
            let untouched = Output::of(memories, &vec![7.0; num_states * shape.head_dim]);
            let alone = Output::new(memories, num_states);
            let attend = AttendRows {
                writes_out: false,
                out: untouched.bound(),
                lse: alone.bound(),
                ..attend
            };
            site.run(&[attend.launch().unwrap()]);
            assert!(untouched.read(memories, &label).iter().all(|&x| x == 7.0), "{label}");
            assert_eq!(alone.read(memories, &label), lse.read(memories, &label), "{label}");
        }
    }
}

/// Logarithms of sums of numbers of this size are within a few roundings of each score.
fn check_lse(actual: &[f32], exact: &[f64], label: &str) {
    let close = |(&actual, &exact): (&f32, &f64)| {
        let actual = f64::from(actual);
        actual == exact || (actual - exact).abs() <= 1e-5 * exact.abs().max(1.0)
    };
    assert_eq!(actual.len(), exact.len());
    assert!(actual.iter().zip(exact).all(close), "{label}: {actual:?} is not {exact:?}");
}

#[test]
fn merge_states() {
    merge_states_on(places_or_skip());
}

pub(crate) fn merge_states_on<S: Site>(sites: &[S]) {
    for (case, (shape, page_tokens, part_tokens)) in cases().into_iter().enumerate() {
        let mut inputs = Inputs::new(800 + case as u64);
        let rows = Rows::random(&mut inputs, shape, page_tokens, &part_tokens);
        let group_size = shape.group_size();
        let (mut outs, mut lses) = (Vec::new(), Vec::new());
        let (mut first, mut ids) = (vec![0u32], Vec::new());
        let (mut exact, mut naive, mut exact_lse) = (Vec::new(), Vec::new(), Vec::new());
        for (kv_head, of_head) in part_tokens.iter().enumerate() {
            let mut start = 0;
            for &num in of_head {
                for head in kv_head * group_size..(kv_head + 1) * group_size {
                    let (out, lse) = rows.naive(head, start, num);
                    outs.extend(out);
                    lses.push(lse);
                }
                start += num;
            }
            let before = *first.last().unwrap();
            first.push(before + of_head.len() as u32);
            ids.extend(before..before + of_head.len() as u32);
            for head in kv_head * group_size..(kv_head + 1) * group_size {
                let (out, lse) = rows.state(head, 0, start);
                exact.extend(out);
                exact_lse.push(lse);
                naive.extend(rows.naive(head, 0, start).0);
            }
        }
        // States lie from the last to the first: which are a KV head's is the list's to say.
        let outs = outs.chunks(group_size * shape.head_dim).rev().collect::<Vec<_>>().concat();
        let lses = lses.chunks(group_size).rev().collect::<Vec<_>>().concat();
        let last = rows.parts.len() as u32 - 1;
        ids.iter_mut().for_each(|id| *id = last - *id);
        let states = Expected {
            exact,
            naive,
            norm: 8.0,
            controls: Controls { num_heads: shape.num_qo_heads, head_dim: shape.head_dim },
        };
        for site in sites {
            let memories = site.memories();
            let [outs, lses] = [upload(memories, &outs), upload(memories, &lses)];
            let [first, ids] = [upload(memories, &first), upload(memories, &ids)];
            let out = Output::new(memories, shape.qo_row_len());
            let lse = Output::new(memories, shape.num_qo_heads);
            let merge = MergeStates {
                shape,
                num_states: rows.parts.len(),
                first: (&first).into(),
                ids: (&ids).into(),
                outs: (&outs).into(),
                lses: (&lses).into(),
                out: out.bound(),
                lse: lse.bound(),
            };
            site.run(&[merge.launch().unwrap()]);
            let label = format!("merge_states, case {case}, on {}", site.name());
            states.check(&out.read(memories, &label), &label, inputs.seed());
            check_lse(&lse.read(memories, &label), &exact_lse, &label);
        }
    }
}

/// Query and KV heads, channels, queries and keys: one, a whole prompt, and blocks behind others, around the 16 queries
/// and 32 keys of a tile.
const PREFILLS: [(usize, usize, usize, usize, usize); 8] = [
    (1, 1, 4, 1, 1),
    (9, 3, 64, 33, 33),
    (2, 1, 64, 16, 32),
    (2, 1, 64, 17, 49),
    (4, 1, 128, 5, 100),
    (6, 3, 80, 40, 71),
    (2, 2, 256, 20, 31),
    (3, 1, 36, 1, 130),
];

#[test]
fn prefill() {
    prefill_on(places_or_skip());
}

pub(crate) fn prefill_on<S: Site>(sites: &[S]) {
    for (case, &(num_qo_heads, num_kv_heads, head_dim, qo_len, kv_len)) in
        PREFILLS.iter().enumerate()
    {
        let shape = HeadShape::new(num_qo_heads, num_kv_heads, head_dim).unwrap();
        let mut inputs = Inputs::new(1000 + case as u64);
        let q = inputs.gaussian_rows(qo_len, shape.qo_row_len(), 1.5);
        let k = inputs.gaussian_rows(kv_len, shape.kv_row_len(), 1.5);
        let v = inputs.gaussian_rows(kv_len, shape.kv_row_len(), 1.0);
        let reference = causal_attention(&shape, &q, &k, &v);
        let naive = naive_prefill(&shape, &q, &k, &v);
        let controls = Controls { num_heads: num_qo_heads, head_dim };
        let states = Expected { exact: reference.out, naive, norm: 8.0, controls };
        for site in sites {
            let memories = site.memories();
            let [on_q, on_k, on_v] =
                [upload(memories, &q), upload(memories, &k), upload(memories, &v)];
            let out = Output::new(memories, q.len());
            let lse = Output::new(memories, qo_len * num_qo_heads);
            let prefill = Prefill {
                shape,
                qo_len,
                kv_len,
                before: kv_len - qo_len,
                adds: false,
                q: (&on_q).into(),
                k: (&on_k).into(),
                v: (&on_v).into(),
                out: out.bound(),
                lse: lse.bound(),
            };
            site.run(&[prefill.launch().unwrap()]);
            let label = format!("prefill, case {case}, on {}", site.name());
            states.check(&out.read(memories, &label), &label, inputs.seed());
            check_lse(&lse.read(memories, &label), &reference.lse, &label);
            // The same in segments, the first of which ends before the first query or with it.
            let first_len = kv_len - qo_len;
            if first_len == 0 {
                continue;
            }
            let cut = |rows: &[f32]| {
                let (first, rest) = rows.split_at(first_len * shape.kv_row_len());
                [upload(memories, first), upload(memories, rest)]
            };
            let ([first_k, rest_k], [first_v, rest_v]) = (cut(&k), cut(&v));
            let first = Prefill {
                kv_len: first_len,
                before: first_len,
                k: (&first_k).into(),
                v: (&first_v).into(),
                ..prefill
            };
            let rest = Prefill {
                kv_len: qo_len,
                before: 0,
                adds: true,
                k: (&rest_k).into(),
                v: (&rest_v).into(),
                ..prefill
            };
            let label = format!("prefill in segments, case {case}, on {}", site.name());
            site.run(&[first.launch().unwrap(), rest.launch().unwrap()]);
            states.check(&out.read(memories, &label), &label, inputs.seed());
            check_lse(&lse.read(memories, &label), &reference.lse, &label);
        }
    }
}

/// Plain f32, without tiles.
fn naive_prefill(shape: &HeadShape, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let HeadShape { num_qo_heads, num_kv_heads, head_dim, sm_scale } = *shape;
    let behind = k.len() / shape.kv_row_len() - q.len() / shape.qo_row_len();
    let row = |rows: &'_ [f32], heads: usize, token: usize, head: usize| {
        rows[(token * heads + head) * head_dim..][..head_dim].to_vec()
    };
    let mut out = Vec::new();
    for token in 0..q.len() / shape.qo_row_len() {
        for head in 0..num_qo_heads {
            let kv_head = head / shape.group_size();
            let query = row(q, num_qo_heads, token, head);
            let scores: Vec<f32> = (0..=behind + token)
                .map(|key| {
                    let key = row(k, num_kv_heads, key, kv_head);
                    sm_scale * query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>()
                })
                .collect();
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = scores.iter().map(|s| (s - largest).exp()).sum();
            let mut sums = vec![0.0; head_dim];
            for (key, s) in scores.iter().enumerate() {
                let value = row(v, num_kv_heads, key, kv_head);
                let weight = (s - largest).exp() / total;
                sums.iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * v);
            }
            out.extend(sums);
        }
    }
    out
}
