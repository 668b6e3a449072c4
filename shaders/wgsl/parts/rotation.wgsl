// The rotation of a key in workgroup memory: a centre is taken from it, signs, then a Walsh–Hadamard transform.
//
// Interface: the binding 4 and `rotate`. Stands on `strips`.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 4 | turns | [num_coders, head_dim] centre, and sign over the root of the block's length, f32; a word where the block is 0 | read |

@group(0) @binding(4) var<storage, read> turns: array<vec2<f32>>;

// All threads, behind a barrier; one comes after.
fn rotate(coder: u32, index: u32) {
    for (var i = index; i < params.head_dim; i += GROUP) {
        let turn = turns[coder * params.head_dim + i];
        x[i] = (clamp(x[i], -65504.0, 65504.0) - turn.x) * turn.y;
    }
    workgroupBarrier();
    for (var half = 1u; half < params.block; half <<= 1u) {
        for (var pair = index; pair < params.head_dim / 2u; pair += GROUP) {
            let low = pair / half * 2u * half + pair % half;
            let a = x[low];
            let b = x[low + half];
            x[low] = a + b;
            x[low + half] = a - b;
        }
        workgroupBarrier();
    }
}
