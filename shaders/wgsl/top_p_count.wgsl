// A histogram of the keys of a head's tokens, of those that have the bits found so far: how many have which next bits,
// and what is below these.
//
//   bin(t) = (key(t) >> shift) & 1023   for tokens with key(t) >> (shift + 10) == key >> (shift + 10)
//   counts[h, bin] += 1,   rests[h, bin] += (key(t) mod 2^shift) >> rest_shift
//
// From counts and rests the mass of a bin follows without a sum of floats, which no atomic has: all its weights have one
// exponent. Levels: shift 20, 10 and 0.
//
// Grid: a workgroup a chunk of CHUNK tokens, workgroup_id.x, and a query head, workgroup_id.y.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | choices | [num_qo_heads] Choice | read |
// | 4 | counts | [num_qo_heads, 1024] u32, zeros before the first chunk | read, write |
// | 5 | rests | [num_qo_heads, 1024] u32, zeros before the first chunk | read, write |
//
// A head of no tokens counts none. A weight that is NaN is in the last bin.
// Accuracy: counts are exact; at shift 20 a rest is rounded to 2^-13 of its weight's exponent. Sums fit 32 bits up to
// 2^22 tokens.

const BINS: u32 = 1024u;

struct Params {
    shift: u32,
    rest_shift: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<ScoreRow>;
@group(0) @binding(2) var<storage, read> scores: array<f32>;
@group(0) @binding(3) var<storage, read> choices: array<Choice>;
@group(0) @binding(4) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> rests: array<atomic<u32>>;

var<workgroup> own_counts: array<atomic<u32>, BINS>;
var<workgroup> own_rests: array<atomic<u32>, BINS>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    for (var bin = index; bin < BINS; bin += GROUP) {
        atomicStore(&own_counts[bin], 0u);
        atomicStore(&own_rests[bin], 0u);
    }
    workgroupBarrier();
    let row = rows[group.y];
    let choice = choices[group.y];
    let end = min(row.num_tokens, (group.x + 1u) * CHUNK);
    if choice.is_found == 0u {
        for (var t = group.x * CHUNK + index; t < end; t += GROUP) {
            let key = key_of(scores[row.start + t], choice.lse);
            // The highest level has twelve bits, of which the upper two are 0 in every weight that is a number.
            let is_first = params.shift == 20u;
            if is_first || key >> (params.shift + 10u) == choice.key >> (params.shift + 10u) {
                let bits = key >> params.shift;
                let bin = select(bits % BINS, min(bits, BINS - 1u), is_first);
                let rest = (key & ((1u << params.shift) - 1u)) >> params.rest_shift;
                atomicAdd(&own_counts[bin], 1u);
                atomicAdd(&own_rests[bin], rest);
            }
        }
    }
    workgroupBarrier();
    for (var bin = index; bin < BINS; bin += GROUP) {
        let count = atomicLoad(&own_counts[bin]);
        if count > 0u {
            atomicAdd(&counts[group.y * BINS + bin], count);
            atomicAdd(&rests[group.y * BINS + bin], atomicLoad(&own_rests[bin]));
        }
    }
}
