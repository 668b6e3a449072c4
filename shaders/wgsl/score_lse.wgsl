// Log-sum-exp of the scores of each chunk of a row.
//
//   parts[h, n] = ln sum over the tokens t of chunk n of exp(scores[h, t])
//
// Grid: a workgroup a chunk of CHUNK tokens, workgroup_id.x, and a query head, workgroup_id.y.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | parts | [num_qo_heads, num_chunks] f32, natural logarithm | write |
//
// A chunk of no tokens gives minus infinity.
// Accuracy: f32; the largest score is taken out first.

struct Params {
    num_chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<ScoreRow>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read_write> parts: array<f32>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let row = rows[group.y];
    let end = min(row.num_tokens, (group.x + 1u) * CHUNK);
    let first = group.x * CHUNK + lane.index;
    var own_largest = minus_infinity();
    for (var t = first; t < end; t += GROUP) {
        own_largest = max(own_largest, scores[row.start + t]);
    }
    let largest = group_max(own_largest, lane);
    let is_empty = largest == minus_infinity();
    // Of an empty chunk every difference would be NaN.
    let shift = select(largest, 0.0, is_empty);
    var own_total = 0.0;
    for (var t = first; t < end; t += GROUP) {
        own_total += exp(scores[row.start + t] - shift);
    }
    let total = group_sum(own_total, lane);
    if lane.index == 0u {
        parts[group.y * params.num_chunks + group.x] = select(shift + log(total), largest, is_empty);
    }
}
