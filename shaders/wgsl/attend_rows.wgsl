// Attention of one token's queries over exact rows on the device, in parts that each give a state.
//
//   s[t] = sm_scale * sum over c of q[h, c] * key[t, c]
//   lse = ln sum over t of exp(s[t]),   out[c] = sum over t of exp(s[t] - lse) * value[t, c]
//
// over the tokens of one part, for each query head h of the part's KV head. Where `writes_out` is 0 only the lse is worked
// out, for which no value is read.
//
// Grid: a workgroup a part, workgroup_id.x, and a query head of the group, workgroup_id.y. A tile of GROUP tokens at a
// time: a thread scores a token, then sums a pair of channels over the tile; the running softmax is that of flash
// attention.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | parts | [num_parts] Part | read |
// | 2 | pages | [num_pages] places of pages in `rows`, in words | read |
// | 3 | rows | pages: keys [page_tokens, head_dim], then values of the same shape, f16, two a word | read |
// | 4 | q | [num_qo_heads, head_dim] f32, post-RoPE | read |
// | 5 | out | [num_states, group_size, head_dim] f32, normalised | write |
// | 6 | lse | [num_states, group_size] f32, natural logarithm | write |
//
// A part begins in a slot of its first page; its pages follow each other in `pages` and are full but for the last. Requires an even head_dim of at most 256.
// A part of no tokens gives zeros and minus infinity. Finite inputs; a score beyond f32 gives NaN.
// Accuracy: f32 from f16 rows.
// Source: Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2023, arXiv 2307.08691.

const GROUP: u32 = 64u;
const MAX_PAIRS: u32 = 128u;
const PAIRS: u32 = MAX_PAIRS / GROUP;

struct Params {
    head_dim: u32,
    group_size: u32,
    page_tokens: u32,
    sm_scale: f32,
    writes_out: u32,
}

struct Part {
    kv_head: u32,
    first_page: u32,
    num_tokens: u32,
    // Of the first page, where the part begins.
    first_slot: u32,
    // Where its state goes.
    state: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<Part>;
@group(0) @binding(2) var<storage, read> pages: array<u32>;
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read> q: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

var<workgroup> query: array<vec2<f32>, MAX_PAIRS>;
var<workgroup> weights: array<f32, GROUP>;
// The word at which the key of each token of the tile begins.
var<workgroup> places: array<u32, GROUP>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let part = parts[group.x];
    let head = group.y;
    let pairs = params.head_dim / 2u;
    for (var i = lane.index; i < pairs; i += GROUP) {
        query[i] = params.sm_scale * q[(part.kv_head * params.group_size + head) * pairs + i];
    }
    workgroupBarrier();
    var largest = -3.4028235e38;
    var total = 0.0;
    var sums: array<vec2<f32>, PAIRS>;
    for (var first = 0u; first < part.num_tokens; first += GROUP) {
        let token = first + lane.index;
        let is_inside = token < part.num_tokens;
        var score = -3.4028235e38;
        if is_inside {
            let slot = part.first_slot + token;
            let page = pages[part.first_page + slot / params.page_tokens];
            let place = page + slot % params.page_tokens * pairs;
            var dots = vec2(0.0);
            for (var i = 0u; i < pairs; i++) {
                dots += query[i] * unpack2x16float(rows[place + i]);
            }
            score = dots.x + dots.y;
            places[lane.index] = place;
        }
        let new_largest = max(largest, group_max(score, lane));
        let weight = select(0.0, exp(score - new_largest), is_inside);
        let keep = exp(largest - new_largest);
        weights[lane.index] = weight;
        total = total * keep + group_sum(weight, lane);
        largest = new_largest;
        let count = min(GROUP, part.num_tokens - first);
        let to_value = params.page_tokens * pairs;
        for (var p = 0u; p < PAIRS; p++) {
            let pair = p * GROUP + lane.index;
            if pair < pairs && params.writes_out != 0u {
                var sum = sums[p] * keep;
                for (var t = 0u; t < count; t++) {
                    sum += weights[t] * unpack2x16float(rows[places[t] + to_value + pair]);
                }
                sums[p] = sum;
            }
        }
        // The next tile overwrites what this one reads.
        workgroupBarrier();
    }
    let state = part.state * params.group_size + head;
    let share = select(0.0, 1.0 / total, part.num_tokens > 0u);
    for (var p = 0u; p < PAIRS; p++) {
        let pair = p * GROUP + lane.index;
        if pair < pairs && params.writes_out != 0u {
            out[state * pairs + pair] = sums[p] * share;
        }
    }
    if lane.index == 0u {
        lse[state] = select(minus_infinity(), largest + log(total), part.num_tokens > 0u);
    }
}
