// The tokens that a KV head's group takes: the union of what its query heads take, in the order of positions.
//
// A head takes the tokens of larger keys than its last one, and of those of the same key the first `ties`. In the first
// pass (writes = 0) the tokens of each chunk are counted; in the second, when the counts have become the sums before
// each, they are written.
//
// Grid: a workgroup a chunk of CHUNK tokens, workgroup_id.x, and a KV head, workgroup_id.y; a thread has OWN tokens that
// follow each other.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | choices | [num_qo_heads] Choice | read |
// | 4 | ties_before | [num_qo_heads, num_chunks] u32, the ties of the chunks before each | read |
// | 5 | counts | [num_kv_heads, num_chunks] u32; in the second pass, tokens taken of the chunks before each | read, write |
// | 6 | positions | [num_kv_heads, capacity] u32, rising | write |
// | 7 | taken_scores | [num_qo_heads, capacity] f32; minus infinity where a head does not take a token | write |
//
// Heads of a group have as many tokens as each other. Requires a group_size of at most 32. What is beyond the capacity
// is not written. A head of no tokens takes none.
// Accuracy: exact, but for keys, see `top_p_find`.

struct Params {
    group_size: u32,
    num_chunks: u32,
    capacity: u32,
    // Whether every head of the group takes the union.
    is_shared: u32,
    writes: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<ScoreRow>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read> choices: array<Choice>;
@group(0) @binding(4) var<storage, read> ties_before: array<u32>;
@group(0) @binding(5) var<storage, read_write> counts: array<u32>;
@group(0) @binding(6) var<storage, read_write> positions: array<u32>;
@group(0) @binding(7) var<storage, read_write> taken_scores: array<f32>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let kv_head = group.y;
    let first_head = kv_head * params.group_size;
    let num_tokens = rows[first_head].num_tokens;
    let first = group.x * CHUNK + index * OWN;
    let end = min(num_tokens, first + OWN);
    // A bit for each head that takes the token.
    var takers: array<u32, OWN>;
    for (var g = 0u; g < params.group_size; g++) {
        let head = first_head + g;
        let start = rows[head].start;
        let choice = choices[head];
        var own_ties = 0u;
        for (var t = first; t < end; t++) {
            own_ties += u32(key_of(scores[start + t], choice.lse) == choice.key);
        }
        var rank = ties_before[head * params.num_chunks + group.x] + group_before(own_ties, index).x;
        for (var t = first; t < end; t++) {
            let key = key_of(scores[start + t], choice.lse);
            let is_tie = key == choice.key;
            if key > choice.key || (is_tie && rank < choice.ties) {
                takers[t - first] |= 1u << g;
            }
            rank += u32(is_tie);
        }
    }
    var own = 0u;
    for (var i = 0u; i < OWN; i++) {
        own += u32(takers[i] != 0u);
    }
    let sums = group_before(own, index);
    let of_chunk = kv_head * params.num_chunks + group.x;
    if params.writes == 0u {
        if index == 0u {
            counts[of_chunk] = sums.y;
        }
        return;
    }
    var at = counts[of_chunk] + sums.x;
    for (var t = first; t < end; t++) {
        let taker = takers[t - first];
        if taker != 0u {
            if at < params.capacity {
                positions[kv_head * params.capacity + at] = t;
                for (var g = 0u; g < params.group_size; g++) {
                    let head = first_head + g;
                    let takes = params.is_shared != 0u || (taker >> g & 1u) != 0u;
                    let score = scores[rows[head].start + t];
                    taken_scores[head * params.capacity + at] = select(minus_infinity(), score, takes);
                }
            }
            at++;
        }
    }
}
