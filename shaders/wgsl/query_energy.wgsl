// How much the queries of each KV head's group look at each channel, over stretches of tokens.
//
//   energy[s, kv, c] = sum over t of stretch s, h of the group of kv, of q[t, h, c]^2
//
// Grid: a workgroup a stretch of STRETCH tokens, workgroup_id.x, and a KV head, workgroup_id.y; threads stride over
// channels.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | q | [tokens, num_qo_heads, head_dim] f32 | read |
// | 2 | energy | [num_stretches, num_kv_heads, head_dim] f32 | write |
//
// No tokens: no workgroups.
// Accuracy: f32; stretches are for the host to add up in f64.

const GROUP: u32 = 64u;
const STRETCH: u32 = 64u;

struct Params {
    tokens: u32,
    group_size: u32,
    num_kv_heads: u32,
    head_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read_write> energy: array<f32>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first = group.x * STRETCH;
    let end = min(params.tokens, first + STRETCH);
    let num_qo_heads = params.num_kv_heads * params.group_size;
    for (var c = index; c < params.head_dim; c += GROUP) {
        var sum = 0.0;
        for (var t = first; t < end; t++) {
            for (var g = 0u; g < params.group_size; g++) {
                let head = group.y * params.group_size + g;
                let x = q[(t * num_qo_heads + head) * params.head_dim + c];
                sum += x * x;
            }
        }
        energy[(group.x * params.num_kv_heads + group.y) * params.head_dim + c] = sum;
    }
}
