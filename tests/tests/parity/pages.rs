//! Codes of 4,194,304 keys a head: more than a buffer holds, and more than 32 bits count in bytes.

use heterokv_attn::device::{ScorePlanes, Span};
use heterokv_gpu::{Bound, Paging};
use heterokv_quant::{FitInput, KeyCoder, Level};
use heterokv_testkit::Inputs;

use crate::devices::{places_or_skip, run};
use crate::sites::upload;

const CONTEXT: usize = 4_194_304;
const NUM_KV_HEADS: usize = 8;
const GROUP_SIZE: usize = 4;
const HEAD_DIM: usize = 128;

/// Pages of different contents.
const PATTERNS: usize = 7;

/// Pages of which all scores are looked at: one of so many, and the first and the last.
const LOOK: u64 = 97;

#[test]
fn codes_of_four_million_keys() {
    let Some(place) = places_or_skip().first() else { return };
    let gpu = place.device.gpu();
    let mut inputs = Inputs::new(4);
    let keys = inputs.gaussian_rows(PATTERNS * Span::TOKENS, HEAD_DIM, 1.0);
    let level = Level::detect();
    let energy = [1.0; HEAD_DIM];
    let input = FitInput { head_dim: HEAD_DIM, keys: &keys, query_energy: &energy, seed: 0, level };
    let coder = KeyCoder::fit("int4-token".parse().unwrap(), &input).unwrap();
    let page_bytes = coder.layout().bytes(Span::TOKENS);
    let binding_bytes = gpu.limits().binding_bytes.min(128 << 20);
    let paging = Paging::new("codes", page_bytes as u64, binding_bytes).unwrap();

    // Every page's address, in 64 bits and by its buffer.
    let pages_of_head = (CONTEXT / Span::TOKENS) as u64;
    let num_pages = NUM_KV_HEADS as u64 * pages_of_head;
    let slab_bytes = paging.slab_pages() * page_bytes as u64;
    for page in 0..num_pages {
        let at = paging.place(page);
        let address = at.slab as u64 * slab_bytes + 4 * u64::from(at.word);
        assert_eq!(address, page * page_bytes as u64, "page {page}");
        assert!(4 * u64::from(at.word) + page_bytes as u64 <= slab_bytes.min(binding_bytes));
    }
    let total = num_pages * page_bytes as u64;
    assert!(total > 2 << 30 && paging.place(num_pages - 1).slab >= 16);

    // The first and the last buffer, filled and scored.
    let mut codes = vec![0; PATTERNS * page_bytes];
    for (keys, codes) in keys.chunks(Span::TOKENS * HEAD_DIM).zip(codes.chunks_mut(page_bytes)) {
        coder.encode(level, 0, keys, codes).unwrap();
    }
    let pattern = |page: u64| (page % PATTERNS as u64) as usize;
    let q = inputs.gaussian_rows(GROUP_SIZE, HEAD_DIM, 1.0);
    let tables = coder.plane_tables(&q, 0.1).unwrap();
    let finals = tables.finals.as_flattened();
    let [on_tables, on_finals] = [upload(gpu, &tables.tables), upload(gpu, finals)];
    let scores = gpu.buffer("scores", (4 * GROUP_SIZE * CONTEXT) as u64).unwrap();
    let mut decoded = vec![0.0; keys.len()];
    for (codes, out) in codes.chunks(page_bytes).zip(decoded.chunks_mut(Span::TOKENS * HEAD_DIM)) {
        coder.decode(0, codes, out);
    }
    let last_slab = paging.place(num_pages - 1).slab as u64;
    let mut num_checked = 0;
    for slab in [0, last_slab] {
        let first = slab * paging.slab_pages();
        let pages = first..num_pages.min(first + paging.slab_pages());
        let num_bytes = (pages.end - pages.start) * page_bytes as u64;
        let memory = gpu.buffer("a buffer of codes", num_bytes).unwrap();
        let bytes: Vec<u8> = pages
            .clone()
            .flat_map(|page| &codes[pattern(page) * page_bytes..][..page_bytes])
            .copied()
            .collect();
        gpu.write(&memory, 0, &bytes).unwrap();
        drop(bytes);
        // Scores of one KV head at a time: those of more would not fit a buffer.
        for kv_head in pages.start / pages_of_head..=(pages.end - 1) / pages_of_head {
            let of_head = kv_head * pages_of_head..(kv_head + 1) * pages_of_head;
            let pages = pages.start.max(of_head.start)..pages.end.min(of_head.end);
            let spans: Vec<Span> = pages
                .clone()
                .map(|page| Span {
                    kv_head: 0,
                    place: paging.place(page).word,
                    num_tokens: Span::TOKENS as u32,
                    first_token: ((page - of_head.start) * Span::TOKENS as u64) as u32,
                })
                .collect();
            let on_spans = upload(gpu, &spans);
            let score = ScorePlanes {
                group_size: GROUP_SIZE,
                num_planes: tables.num_planes,
                tail: tables.tail,
                score_stride: CONTEXT,
                num_spans: spans.len(),
                spans: Bound::all(&on_spans),
                codes: Bound::all(&memory),
                tables: Bound::all(&on_tables),
                finals: Bound::all(&on_finals),
                scores: Bound::all(&scores),
            };
            run(&place.device, |commands| place.device.score_planes(commands, &score));
            let last = pages.end - 1;
            for page in pages.clone().step_by(LOOK as usize).chain([last]) {
                let first = (page - of_head.start) * Span::TOKENS as u64;
                for head in [0, GROUP_SIZE - 1] {
                    let at = 4 * (head as u64 * CONTEXT as u64 + first);
                    let bytes = gpu.read(&scores, at, 4 * Span::TOKENS as u64).unwrap();
                    let actual: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                    let keys = &decoded[pattern(page) * Span::TOKENS * HEAD_DIM..];
                    let query = &q[head * HEAD_DIM..][..HEAD_DIM];
                    for (token, (key, actual)) in keys.chunks(HEAD_DIM).zip(&actual).enumerate() {
                        let exact: f32 = query.iter().zip(key).map(|(q, k)| 0.1 * q * k).sum();
                        let label = format!("page {page}, token {token}, head {head}");
                        assert!((exact - actual).abs() < 1e-3, "{label}: {actual} of {exact}");
                        num_checked += 1;
                    }
                }
            }
        }
    }
    assert!(num_checked > 10_000, "{num_checked}");
}
