// The normaliser of each head over all its tokens, and the mass that its coded tokens have to hold.
//
//   lse[h] = ln (exp(resident[h]) + sum over n of exp(parts[h, n]))
//   target_mass[h] = top_p - exp(resident[h] - lse[h])
//
// Grid: a workgroup a query head, workgroup_id.x.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | resident | [num_qo_heads] f32, natural logarithm | read |
// | 2 | parts | [num_qo_heads, num_chunks] f32, natural logarithm | read |
// | 3 | choices | [num_qo_heads] Choice | write |
//
// Nothing resident is minus infinity. Of no tokens at all the lse is minus infinity.
// Accuracy: f32.
// Source: HCAttention, arXiv 2507.19823, section 3.3.

struct Params {
    num_chunks: u32,
    top_p: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> resident: array<f32>;
@group(0) @binding(2) var<storage, read> parts: array<f32>;
@group(0) @binding(3) var<storage, read_write> choices: array<Choice>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = group.x;
    let of_resident = resident[head];
    var own_largest = of_resident;
    for (var n = lane.index; n < params.num_chunks; n += GROUP) {
        own_largest = max(own_largest, parts[head * params.num_chunks + n]);
    }
    let largest = group_max(own_largest, lane);
    let is_empty = largest == minus_infinity();
    let shift = select(largest, 0.0, is_empty);
    var own_total = 0.0;
    for (var n = lane.index; n < params.num_chunks; n += GROUP) {
        own_total += exp(parts[head * params.num_chunks + n] - shift);
    }
    let total = group_sum(own_total, lane) + exp(of_resident - shift);
    if lane.index == 0u {
        let lse = select(shift + log(total), largest, is_empty);
        let resident_mass = select(exp(of_resident - lse), 0.0, is_empty);
        choices[head] = Choice(lse, params.top_p - resident_mass, 0u, 0u, 0.0, 0u, 0u, 0u);
    }
}
