//! Coded keys on pages, as kernels score them, and the scores.

use anyhow::Result;
use heterokv_attn::device::Span;
use heterokv_gpu::{Bound, Buffer, Gpu, Paged, Paging};

use super::kernels::Shape;
use super::measured::{near, room, upload};

/// Coded keys of all KV heads on pages of [`Span::TOKENS`], and the scores of all query heads.
pub(super) struct CodePages {
    memory: Paged,
    spans: Buffer,
    num_spans: usize,
    pub(super) scores: Buffer,
}

/// What one dispatch scores.
pub(super) struct Scored<'a> {
    pub(super) num_spans: usize,
    pub(super) spans: Bound<'a>,
    pub(super) codes: Bound<'a>,
}

impl CodePages {
    /// All pages of a KV head are the same one, in memory of their own.
    pub(super) fn new(gpu: &Gpu, shape: &Shape, page_of_head: &[Vec<u8>]) -> Result<Self> {
        let page_bytes = page_of_head[0].len() as u64;
        let paging = Paging::new("codes", page_bytes, gpu.limits().binding_bytes)?;
        let mut memory = Paged::new("codes", paging);
        let pages_of_head = shape.context.div_ceil(Span::TOKENS);
        let num_spans = page_of_head.len() * pages_of_head;
        memory.reserve(gpu, num_spans as u64)?;
        let mut spans = Vec::with_capacity(num_spans);
        for page_number in 0..num_spans {
            let kv_head = page_number / pages_of_head;
            memory.write(gpu, page_number as u64, 0, &page_of_head[kv_head])?;
            let first = page_number % pages_of_head * Span::TOKENS;
            spans.push(Span {
                kv_head: kv_head as u32,
                place: paging.place(page_number as u64).word,
                num_tokens: Span::TOKENS.min(shape.context - first) as u32,
                first_token: first as u32,
            });
        }
        let scores = room(gpu, shape.num_qo_heads * shape.context)?;
        Ok(Self { memory, spans: upload(gpu, &spans)?, num_spans, scores })
    }

    /// All of them: a slab at a time, and of it as many as a dispatch can have everywhere, in steps that a binding can
    /// begin at.
    pub(super) fn dispatches(&self) -> impl Iterator<Item = Scored<'_>> {
        const MOST: usize = 65_520;
        let slab_pages = self.memory.paging().slab_pages() as usize;
        self.memory.slabs().iter().enumerate().flat_map(move |(slab, codes)| {
            let end = ((slab + 1) * slab_pages).min(self.num_spans);
            (slab * slab_pages..end).step_by(MOST).map(move |first| {
                let num_spans = (end - first).min(MOST);
                let span_bytes = size_of::<Span>() as u64;
                let (start, len) = (first as u64 * span_bytes, num_spans as u64 * span_bytes);
                let spans = Bound::part(&self.spans, start, len);
                Scored { num_spans, spans, codes: Bound::all(codes) }
            })
        })
    }

    /// Holds scores of some tokens of the first and the last query head to those of these heads and places in a page.
    pub(super) fn check(
        &self,
        gpu: &Gpu,
        shape: &Shape,
        expected: impl Fn(usize, usize) -> f64,
    ) -> Result<()> {
        let row_bytes = 4 * shape.context as u64;
        for head in [0, shape.num_qo_heads - 1] {
            let row = gpu.read(&self.scores, head as u64 * row_bytes, row_bytes)?;
            let row: Vec<f32> = bytemuck::pod_collect_to_vec(&row);
            let tokens = [0, 1, 40, 127, shape.context / 2, shape.context - 1];
            for token in tokens.into_iter().filter(|token| *token < shape.context) {
                let what = format!("token {token} of head {head}");
                near(&what, row[token], expected(head, token % Span::TOKENS), 1.0)?;
            }
        }
        Ok(())
    }
}
