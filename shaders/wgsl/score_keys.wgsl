// Scores of keys whose codes lie channel by channel, by queries in their frame.
//
//   score[h, t] = scale[t] * (offset[h] + sum over channels c of q[h, c] * value[t, c]) + zero[t] * sum[h] + bias[h]
//
// What a code stands for, and the scale and zero of a token, are a `keys_` part's: rows of f16, bytes with a scale and zero
// for each token, or integers with a scale and zero for each channel of a block.
//
// Grid: a workgroup a span, workgroup_id.x, and HEADS query heads of its group, workgroup_id.y; a thread a token. The
// queries' TILE channels at a time are in workgroup memory.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | spans | [num_spans] Span | read |
// | 2 | codes | blocks, as words | read |
// | 3 | queries | [num_qo_heads, head_dim] f32 | read |
// | 4 | finals | [num_qo_heads] offset, sum, bias and 0, f32 | read |
// | 5 | scores | [num_qo_heads, score_stride] f32: token t of a span at first_token + t of each head's row | write |
//
// A span is of at most GROUP tokens that begin with a block. A span of no tokens writes nothing. Requires a head_dim in
// fours.
// Accuracy: f32 sums in the order of the channels, four at a time.
// Source: KIVI, arXiv 2402.02750, for scales by channel; docs/methods/hca.md for the rest.

const GROUP: u32 = 128u;
const HEADS: u32 = 8u;
const TILE: u32 = 64u;
const FOURS: u32 = TILE / 4u;

struct Params {
    group_size: u32,
    head_dim: u32,
    block_words: u32,
    score_stride: u32,
    // As `tails` and `keys_channels` have them.
    tail: u32,
    bits: u32,
    group_tokens: u32,
}

struct Span {
    kv_head: u32,
    // Of its first block, in words.
    place: u32,
    num_tokens: u32,
    first_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> queries: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> finals: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> scores: array<f32>;

// [FOURS, HEADS]: the heads of four channels lie side by side.
var<workgroup> tile: array<vec4<f32>, FOURS * HEADS>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let span = spans[group.x];
    let first_head = group.y * HEADS;
    let heads = min(HEADS, params.group_size - first_head);
    let first_qo = span.kv_head * params.group_size + first_head;
    let is_inside = index < span.num_tokens;
    let at = place_of(span.place, index);
    let fours = params.head_dim / 4u;
    var sums: array<f32, HEADS>;
    for (var first = 0u; first < fours; first += FOURS) {
        let count = min(FOURS, fours - first);
        for (var i = index; i < count * HEADS; i += GROUP) {
            let head = i % HEADS;
            var four = vec4(0.0);
            if head < heads {
                four = queries[(first_qo + head) * fours + first + i / HEADS];
            }
            tile[i] = four;
        }
        workgroupBarrier();
        if is_inside {
            for (var i = 0u; i < count; i++) {
                let values = values_of(at, 4u * (first + i));
                for (var h = 0u; h < HEADS; h++) {
                    sums[h] += dot(tile[i * HEADS + h], values);
                }
            }
        }
        workgroupBarrier();
    }
    if is_inside {
        let tail = tail_at(at);
        for (var h = 0u; h < heads; h++) {
            let last = finals[first_qo + h];
            let score_at = (first_qo + h) * params.score_stride + span.first_token + index;
            scores[score_at] = tail.x * (sums[h] + last.x) + tail.y * last.y + last.z;
        }
    }
}
