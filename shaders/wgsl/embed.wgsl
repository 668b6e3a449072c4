// Rows of the embedding, one for each token.
//
//   y[t, c] = weight[ids[t] - first_row, c]   for the tokens whose row is among those of this part of the matrix
//
// Grid: a workgroup a token, t = workgroup_id.x + workgroup_id.y * num_workgroups.x; threads stride over blocks.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1, 2 | the weights | [rows, cols] in the form of a `weights_` part | read |
// | 3 | ids | [tokens] u32 | read |
// | 4 | y | [tokens, cols] f32, as groups of four | write |
//
// A matrix that is larger than a binding comes in parts of whole rows, a dispatch each; a token whose row is in none of
// them leaves y as it was, so the host checks ids first. Requires cols to be whole blocks. No tokens: no workgroups.
// Accuracy: that of the form.

const GROUP: u32 = 64u;

struct Params {
    first_row: u32,
    rows: u32,
    num_blocks: u32,
    tokens: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let token = group.x + group.y * groups.x;
    if token >= params.tokens {
        return;
    }
    let id = ids[token];
    if id < params.first_row || id - params.first_row >= params.rows {
        return;
    }
    let row = id - params.first_row;
    for (var b = index; b < params.num_blocks; b += GROUP) {
        let weights = weights_of(row * params.num_blocks + b);
        for (var i = 0u; i < 8u; i++) {
            y[(token * params.num_blocks + b) * 8u + i] = weights[i];
        }
    }
}
