// Scores of coded keys that lie in nibble planes, by tables of each query.
//
//   score[h, t] = scale[t] * (offset[h] + sum over planes p of table[h, p, nibble[p, t]]) + zero[t] * sum[h] + bias[h]
//
// A strip of 32 tokens has its planes one after the other, 16 bytes each with a nibble of every token, and behind them
// the tails of its tokens: nothing, a scale, a scale and a zero in f16, or a byte e that means a scale of
// 2^((e - 128) / 8). The nibble of the token in slot s is in byte s % 8 * 2 + s / 8 % 2 of a plane, in the upper half for
// s >= 16. What a nibble stands for is the tables' to say, so that one kernel scores integers per token, Lloyd-Max
// codes, bits allocated over channels, and product quantization of 16 centroids.
//
// Grid: a workgroup a span, workgroup_id.x, and HEADS query heads of its group, workgroup_id.y; a thread a token. The
// tables of TILE planes at a time are in workgroup memory.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | spans | [num_spans] Span | read |
// | 2 | codes | strips, as words | read |
// | 3 | tables | [num_qo_heads, num_planes, 16] f32 | read |
// | 4 | finals | [num_qo_heads] offset, sum, bias and 0, f32 | read |
// | 5 | scores | [num_qo_heads, score_stride] f32: token t of a span at first_token + t of each head's row | write |
//
// A span is of at most GROUP tokens that begin with a strip. A span of no tokens writes nothing.
// Accuracy: sums of TILE planes in the arithmetic of a `terms_` part, in the order of the planes, then sums of these in
// f32. In f16, for scores that only select, a sum is off by at most
//
//   16 * 2^-11 / (1 - 16 * 2^-11) * sum over planes p of |table[h, p, nibble[p, t]]| + num_planes * 2^-14
//
// beside what f32 does: each term is rounded once and added at most fifteen times, and a device may take what is below
// 2^-14 for 0. Entries are held at +-65504; a sum of TILE planes beyond that is not a number or infinite.
// Source: HCAttention, arXiv 2507.19823, section 3.2, for tables of product quantization; docs/methods/hca.md for the rest.

const GROUP: u32 = 128u;
const HEADS: u32 = 8u;
const TILE: u32 = 16u;
const PLANE_WORDS: u32 = 4u;

struct Params {
    group_size: u32,
    num_planes: u32,
    strip_words: u32,
    tail: u32,
    score_stride: u32,
}

struct Span {
    kv_head: u32,
    // Of its first strip, in words.
    place: u32,
    num_tokens: u32,
    // The place of its first token in the rows of scores.
    first_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> tables: array<f32>;
@group(0) @binding(4) var<storage, read> finals: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> scores: array<f32>;

// [TILE, 16, HEADS]: the heads of an entry lie side by side.
var<workgroup> tile: array<Term, TILE * 16u * HEADS>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let span = spans[group.x];
    let first_head = group.y * HEADS;
    let heads = min(HEADS, params.group_size - first_head);
    let first_qo = span.kv_head * params.group_size + first_head;
    let is_inside = index < span.num_tokens;
    let slot = index % STRIP;
    let strip = span.place + index / STRIP * params.strip_words;
    let word = slot % 8u / 2u;
    let shift = slot % 2u * 16u + slot / 8u % 2u * 8u + slot / 16u * 4u;
    var sums: array<f32, HEADS>;
    for (var first = 0u; first < params.num_planes; first += TILE) {
        let count = min(TILE, params.num_planes - first);
        for (var at = index; at < count * 16u * HEADS; at += GROUP) {
            let head = at % HEADS;
            let entry = at / HEADS;
            var value = 0.0;
            if head < heads {
                value = tables[((first_qo + head) * params.num_planes + first) * 16u + entry];
            }
            tile[at] = term_of(value);
        }
        workgroupBarrier();
        if is_inside {
            var of_tile: array<Term, HEADS>;
            for (var p = 0u; p < count; p++) {
                let nibble = (codes[strip + (first + p) * PLANE_WORDS + word] >> shift) & 15u;
                let entry = (p * 16u + nibble) * HEADS;
                for (var h = 0u; h < HEADS; h++) {
                    of_tile[h] += tile[entry + h];
                }
            }
            for (var h = 0u; h < HEADS; h++) {
                sums[h] += f32(of_tile[h]);
            }
        }
        workgroupBarrier();
    }
    if is_inside {
        let tail = tail_of(strip + params.num_planes * PLANE_WORDS, slot);
        for (var h = 0u; h < heads; h++) {
            let last = finals[first_qo + h];
            let at = (first_qo + h) * params.score_stride + span.first_token + index;
            scores[at] = tail.x * (sums[h] + last.x) + tail.y * last.y + last.z;
        }
    }
}
