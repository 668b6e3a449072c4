//! Codes of 4,194,304 keys a head: more than a buffer holds, and more than 32 bits count one by one.

use std::ops::Range;

use heterokv_attn::device::{ScorePlanes, Span};
use heterokv_gpu::{Bound, Paging, Place};
use heterokv_quant::{FitInput, KeyCoder, Level, PlaneTables};
use heterokv_testkit::Inputs;

use crate::devices::{self, places_or_skip};
use crate::sites::{Site, upload};

const CONTEXT: usize = 4_194_304;
const PAGES_OF_HEAD: u64 = (CONTEXT / Span::TOKENS) as u64;
const NUM_KV_HEADS: u64 = 8;
const GROUP_SIZE: usize = 4;
const HEAD_DIM: usize = 128;

/// Pages of different contents.
const PATTERNS: usize = 7;

/// Pages of which all scores are looked at: one of so many, and the first and the last.
const LOOK: u64 = 97;

#[test]
fn codes_of_four_million_keys() {
    let Some(site) = places_or_skip().first() else { return };
    let layer = Layer::new(site);
    let paging = layer.paging;
    let right = |page| paging.place(page);
    layer.addresses(right).unwrap();
    let last_slab = right(layer.num_pages - 1).slab as u64;
    assert!(layer.num_pages * paging.page_bytes() > 2 << 30 && last_slab >= 16);
    // The first and the last buffer, filled and scored.
    let mut num_checked = layer.scores(0, 0, right).unwrap();
    num_checked += layer.scores(last_slab, last_slab, right).unwrap();
    assert!(num_checked > 10_000, "{num_checked}");

    // What goes wrong with addresses, on purpose: codes that are counted in 32 bits, and the buffer before.
    let slab_bytes = paging.slab_pages() * paging.page_bytes();
    let wrapped = |page: u64| {
        let byte = u64::from((2 * page * paging.page_bytes()) as u32) / 2;
        Place { slab: (byte / slab_bytes) as usize, word: (byte % slab_bytes / 4) as u32 }
    };
    let before = |page| Place { slab: right(page).slab.saturating_sub(1), ..right(page) };
    let page_before = |page: u64| right(page.max(1) - 1);
    layer.addresses(wrapped).unwrap_err();
    layer.addresses(before).unwrap_err();
    layer.addresses(page_before).unwrap_err();
    layer.scores(last_slab, last_slab, wrapped).unwrap_err();
    layer.scores(last_slab, last_slab, page_before).unwrap_err();
    // A buffer that still holds the codes of another.
    layer.scores(last_slab, 0, right).unwrap_err();
}

/// The coded keys of a layer, in pages of a few contents, and queries.
struct Layer<'a> {
    site: &'a devices::Place,
    paging: Paging,
    num_pages: u64,
    binding_bytes: u64,
    /// Codes of each content, and the keys that they stand for.
    codes: Vec<Vec<u8>>,
    decoded: Vec<Vec<f32>>,
    q: Vec<f32>,
    tables: PlaneTables,
}

impl<'a> Layer<'a> {
    fn new(site: &'a devices::Place) -> Self {
        let mut inputs = Inputs::new(4);
        let keys = inputs.gaussian_rows(PATTERNS * Span::TOKENS, HEAD_DIM, 1.0);
        let level = Level::detect();
        let energy = [1.0; HEAD_DIM];
        let input =
            FitInput { head_dim: HEAD_DIM, keys: &keys, query_energy: &energy, seed: 0, level };
        let coder = KeyCoder::fit("int4-token".parse().unwrap(), &input).unwrap();
        let page_bytes = coder.layout().bytes(Span::TOKENS);
        let binding_bytes = site.device.gpu().limits().binding_bytes.min(128 << 20);
        let encoded = |keys: &[f32]| {
            let mut codes = vec![0; page_bytes];
            coder.encode(level, 0, keys, &mut codes).unwrap();
            codes
        };
        let decoded = |codes: &Vec<u8>| {
            let mut keys = vec![0.0; Span::TOKENS * HEAD_DIM];
            coder.decode(0, codes, &mut keys);
            keys
        };
        let codes: Vec<_> = keys.chunks(Span::TOKENS * HEAD_DIM).map(encoded).collect();
        let q = inputs.gaussian_rows(GROUP_SIZE, HEAD_DIM, 1.0);
        Self {
            site,
            paging: Paging::new("codes", page_bytes as u64, binding_bytes).unwrap(),
            num_pages: NUM_KV_HEADS * PAGES_OF_HEAD,
            binding_bytes,
            decoded: codes.iter().map(decoded).collect(),
            codes,
            tables: coder.plane_tables(&q, 0.1).unwrap(),
            q,
        }
    }

    /// Pages of a buffer.
    fn pages_of(&self, slab: u64) -> Range<u64> {
        let first = slab * self.paging.slab_pages();
        first..self.num_pages.min(first + self.paging.slab_pages())
    }

    /// Every page's address, in 64 bits and by its buffer.
    fn addresses(&self, place: impl Fn(u64) -> Place) -> Result<(), String> {
        let page_bytes = self.paging.page_bytes();
        let slab_bytes = self.paging.slab_pages() * page_bytes;
        for page in 0..self.num_pages {
            let at = place(page);
            let address = at.slab as u64 * slab_bytes + 4 * u64::from(at.word);
            let end = 4 * u64::from(at.word) + page_bytes;
            if address != page * page_bytes || end > slab_bytes.min(self.binding_bytes) {
                return Err(format!("page {page} is at {at:?}"));
            }
        }
        Ok(())
    }

    /// Scores the pages of a buffer that is filled with those of `filled_as`, and gives how many it has looked at.
    fn scores(
        &self,
        slab: u64,
        filled_as: u64,
        place: impl Fn(u64) -> Place,
    ) -> Result<usize, String> {
        let gpu = self.site.device.gpu();
        let Self { tables, q, .. } = self;
        let pattern = |page: u64| (page % PATTERNS as u64) as usize;
        let pages = self.pages_of(slab);
        let num_bytes = self.paging.bytes(pages.end - pages.start);
        let memory = gpu.buffer("a buffer of codes", num_bytes).unwrap();
        let from = self.pages_of(filled_as).start;
        let held = from..from + (pages.end - pages.start);
        let bytes = held.map(|page| &self.codes[pattern(page)][..]).collect::<Vec<_>>().concat();
        gpu.write(&memory, 0, &bytes).unwrap();
        drop(bytes);
        let on_tables = upload(gpu, &tables.tables);
        let on_finals = upload(gpu, tables.finals.as_flattened());
        let scores = gpu.buffer("scores", (4 * GROUP_SIZE * CONTEXT) as u64).unwrap();
        let mut num_checked = 0;
        // Scores of one KV head at a time: those of more would not fit a buffer.
        for kv_head in pages.start / PAGES_OF_HEAD..=(pages.end - 1) / PAGES_OF_HEAD {
            let of_head = kv_head * PAGES_OF_HEAD..(kv_head + 1) * PAGES_OF_HEAD;
            let pages = pages.start.max(of_head.start)..pages.end.min(of_head.end);
            let span = |page: u64| Span {
                kv_head: 0,
                place: place(page).word,
                num_tokens: Span::TOKENS as u32,
                first_token: ((page - of_head.start) * Span::TOKENS as u64) as u32,
            };
            let spans: Vec<Span> = pages.clone().map(span).collect();
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
            self.site.run(&[score.launch().unwrap()]);
            let last = pages.end - 1;
            for page in pages.clone().step_by(LOOK as usize).chain([last]) {
                let first = (page - of_head.start) * Span::TOKENS as u64;
                for head in [0, GROUP_SIZE - 1] {
                    let at = 4 * (head as u64 * CONTEXT as u64 + first);
                    let bytes = gpu.read(&scores, at, 4 * Span::TOKENS as u64).unwrap();
                    let actual: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                    let keys = &self.decoded[pattern(page)];
                    let query = &q[head * HEAD_DIM..][..HEAD_DIM];
                    for (token, (key, actual)) in keys.chunks(HEAD_DIM).zip(&actual).enumerate() {
                        let exact: f32 = query.iter().zip(key).map(|(q, k)| 0.1 * q * k).sum();
                        // Not a number is not close, either.
                        let is_close = (exact - actual).abs() < 1e-3;
                        if !is_close {
                            let label = format!("page {page}, token {token}, head {head}");
                            return Err(format!("{label}: {actual} of {exact}"));
                        }
                        num_checked += 1;
                    }
                }
            }
        }
        Ok(num_checked)
    }
}
