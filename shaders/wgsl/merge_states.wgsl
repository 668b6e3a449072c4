// The exact merge of attention states of disjoint sets of tokens.
//
//   lse[h] = ln sum over s of exp(lse[s, h]),   out[h] = sum over s of exp(lse[s, h] - lse[h]) * out[s, h]
//
// over the states s of the KV head of query head h, those that `ids` names from `first[kv_head]` to
// `first[kv_head + 1]`.
//
// Grid: a workgroup a query head, workgroup_id.x; threads stride over channels.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | first | [num_kv_heads + 1] u32, rising | read |
// | 2 | ids | [first[num_kv_heads]] u32, states | read |
// | 3 | outs | [num_states, group_size, head_dim] f32, normalised | read |
// | 4 | lses | [num_states, group_size] f32, natural logarithm | read |
// | 5 | out | [num_qo_heads, head_dim] f32 | write |
// | 6 | lse | [num_qo_heads] f32 | write |
//
// No states, or empty ones alone: zeros and minus infinity; an empty state changes nothing. NaN spreads.
// Accuracy: f32; the states are summed in order.
// Source: Ye et al. 2025, arXiv 2501.01005, section 2.2.

const GROUP: u32 = 64u;

struct Params {
    head_dim: u32,
    group_size: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> first: array<u32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> outs: array<f32>;
@group(0) @binding(4) var<storage, read> lses: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let kv_head = group.x / params.group_size;
    let head = group.x % params.group_size;
    let begin = first[kv_head];
    let end = first[kv_head + 1u];
    var own_largest = minus_infinity();
    for (var s = begin + lane.index; s < end; s += GROUP) {
        own_largest = max(own_largest, lses[ids[s] * params.group_size + head]);
    }
    let largest = group_max(own_largest, lane);
    let is_empty = largest == minus_infinity();
    // Of an empty set every difference would be NaN.
    let shift = select(largest, 0.0, is_empty);
    var own_total = 0.0;
    for (var s = begin + lane.index; s < end; s += GROUP) {
        own_total += exp(lses[ids[s] * params.group_size + head] - shift);
    }
    let total = group_sum(own_total, lane);
    for (var c = lane.index; c < params.head_dim; c += GROUP) {
        var sum = 0.0;
        for (var s = begin; s < end; s++) {
            let state = ids[s] * params.group_size + head;
            sum += exp(lses[state] - shift) * outs[state * params.head_dim + c];
        }
        out[group.x * params.head_dim + c] = select(sum / total, 0.0, is_empty);
    }
    if lane.index == 0u {
        lse[group.x] = select(shift + log(total), largest, is_empty);
    }
}
