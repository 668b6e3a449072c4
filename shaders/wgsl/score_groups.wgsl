// Scores of keys under product quantization of more than 16 centroids, by tables of each query.
//
//   score[h, t] = sum over groups g of table[h, g, code[t, g]]
//
// A token's codes are a row of row_bytes, packed from the lowest bit up, and rows follow each other without gaps.
//
// Grid: a workgroup a span, workgroup_id.x, and HEADS query heads of its group, workgroup_id.y; a thread a token. The
// tables of as many groups and heads as fit are in workgroup memory at a time: of all HEADS up to 512 centroids, of fewer
// beyond.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | spans | [num_spans] Span | read |
// | 2 | codes | rows, as words | read |
// | 3 | tables | [num_qo_heads, num_groups, 2^code_bits] f32 | read |
// | 4 | scores | [num_qo_heads, score_stride] f32: token t of a span at first_token + t of each head's row | write |
//
// A span is of at most GROUP tokens, the first of which begins with a word. A span of no tokens writes nothing. Requires
// codes of 5 to 12 bits.
// Accuracy: f32 sums in the order of the groups.
// Source: HCAttention, arXiv 2507.19823, section 3.2.

const GROUP: u32 = 128u;
const HEADS: u32 = 8u;

// Entries of tables in workgroup memory: all that the smallest device has.
const ENTRIES: u32 = 4096u;

struct Params {
    group_size: u32,
    num_groups: u32,
    code_bits: u32,
    row_bytes: u32,
    score_stride: u32,
}

struct Span {
    kv_head: u32,
    // Of its first token, in words.
    place: u32,
    num_tokens: u32,
    first_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<Span>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> tables: array<f32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

// [groups, 2^code_bits, heads]: the heads of an entry lie side by side.
var<workgroup> tile: array<f32, ENTRIES>;

// The code that begins at a bit of a span.
fn code_at(place: u32, bit: u32) -> u32 {
    let word = place + bit / 32u;
    let shift = bit % 32u;
    var packed = codes[word] >> shift;
    if shift + params.code_bits > 32u {
        packed |= codes[word + 1u] << (32u - shift);
    }
    return packed & ((1u << params.code_bits) - 1u);
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let span = spans[group.x];
    let first_head = group.y * HEADS;
    let heads = min(HEADS, params.group_size - first_head);
    let first_qo = span.kv_head * params.group_size + first_head;
    let is_inside = index < span.num_tokens;
    let tile_heads = min(HEADS, ENTRIES >> params.code_bits);
    let tile_groups = (ENTRIES >> params.code_bits) / tile_heads;
    var sums: array<f32, HEADS>;
    for (var lead = 0u; lead < heads; lead += tile_heads) {
        for (var first = 0u; first < params.num_groups; first += tile_groups) {
            let count = min(tile_groups, params.num_groups - first);
            for (var at = index; at < (count << params.code_bits) * tile_heads; at += GROUP) {
                let head = lead + at % tile_heads;
                var value = 0.0;
                if head < heads {
                    let of_head = ((first_qo + head) * params.num_groups + first) << params.code_bits;
                    value = tables[of_head + at / tile_heads];
                }
                tile[at] = value;
            }
            workgroupBarrier();
            if is_inside {
                for (var g = 0u; g < count; g++) {
                    let bit = 8u * index * params.row_bytes + (first + g) * params.code_bits;
                    let entry = ((g << params.code_bits) + code_at(span.place, bit)) * tile_heads;
                    for (var h = 0u; h < tile_heads; h++) {
                        sums[lead + h] += tile[entry + h];
                    }
                }
            }
            workgroupBarrier();
        }
    }
    if is_inside {
        for (var h = 0u; h < heads; h++) {
            scores[(first_qo + h) * params.score_stride + span.first_token + index] = sums[h];
        }
    }
}
