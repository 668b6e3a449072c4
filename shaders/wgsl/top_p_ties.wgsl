// How many tokens of each chunk have the very key of a head's last token.
//
//   ties[h, n] = number of tokens t of chunk n with key(t) = key[h]
//
// Grid: a workgroup a chunk of CHUNK tokens, workgroup_id.x, and a query head, workgroup_id.y.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | choices | [num_qo_heads] Choice | read |
// | 4 | ties | [num_qo_heads, num_chunks] u32 | write |
//
// A chunk of no tokens has 0.
// Accuracy: exact.

struct Params {
    num_chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<ScoreRow>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read> choices: array<Choice>;
@group(0) @binding(4) var<storage, read_write> ties: array<u32>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[group.y];
    let choice = choices[group.y];
    let end = min(row.num_tokens, (group.x + 1u) * CHUNK);
    var own = 0u;
    for (var t = group.x * CHUNK + index; t < end; t += GROUP) {
        own += u32(key_of(scores[row.start + t], choice.lse) == choice.key);
    }
    let sums = group_before(own, index);
    if index == 0u {
        ties[group.y * params.num_chunks + group.x] = sums.y;
    }
}
