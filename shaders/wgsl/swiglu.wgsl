// The gated activation of a feed-forward layer.
//
//   y[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
//
// Grid: a thread a group of four elements: workgroup_id.x + workgroup_id.y * num_workgroups.x times GROUP.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | gate | [4 * num_fours] f32 | read |
// | 2 | up | [4 * num_fours] f32 | read |
// | 3 | y | [4 * num_fours] f32 | write |
//
// No elements: no workgroups. A gate of minus infinity gives NaN, as on the CPU.
// Accuracy: that of exp, a few units in the last place.
// Source: Shazeer 2020, arXiv 2002.05202, equation 5.

const GROUP: u32 = 64u;

struct Params {
    num_fours: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let at = (group.x + group.y * groups.x) * GROUP + index;
    if at >= params.num_fours {
        return;
    }
    let x = gate[at];
    y[at] = x / (vec4(1.0) + exp(-x)) * up[at];
}
