// Products of a weight matrix with many vectors, through tiles in workgroup memory.
//
//   y[t, r] = (add ? y[t, r] : 0) + bias[r] + sum over c of weight[r, c] * x[t, c]
//
// Grid: a workgroup a tile of TILE rows (workgroup_id.x) and TILE vectors (workgroup_id.y); a thread has PATCH rows and
// PATCH vectors of it. A block of 32 columns at a time is decoded for all rows of the tile.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1, 2 | the weights | [rows, cols] in the form of a `weights_` part | read |
// | 3 | bias | [rows] f32 | read |
// | 4 | x | [tokens, cols] f32, as groups of four | read |
// | 5 | y | [tokens, y_stride] f32; rows y_first .. y_first + rows of each are written | read, write |
//
// Requires cols to be whole blocks. No rows or vectors: no workgroups. No columns: the bias.
// Accuracy: f32; the columns are summed in order.

const TILE: u32 = 32u;
const PATCH: u32 = 4u;
const GROUP: u32 = (TILE / PATCH) * (TILE / PATCH);

struct Params {
    rows: u32,
    num_blocks: u32,
    y_first: u32,
    y_stride: u32,
    add: u32,
    tokens: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

// Groups of four columns, for each row or vector: [8, TILE].
var<workgroup> weight_tile: array<vec4<f32>, 8u * TILE>;
var<workgroup> x_tile: array<vec4<f32>, 8u * TILE>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    let own_row = (index % (TILE / PATCH)) * PATCH;
    let own_token = (index / (TILE / PATCH)) * PATCH;
    var sums: array<vec4<f32>, PATCH>;
    for (var b = 0u; b < params.num_blocks; b++) {
        // Half of the threads decode a row each; all of them fetch the vectors.
        if index < TILE {
            let row = first_row + index;
            if row < params.rows {
                let weights = weights_of(row * params.num_blocks + b);
                for (var i = 0u; i < 8u; i++) {
                    weight_tile[i * TILE + index] = weights[i];
                }
            } else {
                for (var i = 0u; i < 8u; i++) {
                    weight_tile[i * TILE + index] = vec4(0.0);
                }
            }
        }
        for (var at = index; at < 8u * TILE; at += GROUP) {
            let token = first_token + at / 8u;
            var four = vec4(0.0);
            if token < params.tokens {
                four = x[(token * params.num_blocks + b) * 8u + at % 8u];
            }
            x_tile[(at % 8u) * TILE + at / 8u] = four;
        }
        workgroupBarrier();
        for (var i = 0u; i < 8u; i++) {
            var fours: array<vec4<f32>, PATCH>;
            for (var r = 0u; r < PATCH; r++) {
                fours[r] = weight_tile[i * TILE + own_row + r];
            }
            for (var t = 0u; t < PATCH; t++) {
                let four = x_tile[i * TILE + own_token + t];
                sums[t] += vec4(
                    dot(fours[0], four),
                    dot(fours[1], four),
                    dot(fours[2], four),
                    dot(fours[3], four),
                );
            }
        }
        workgroupBarrier();
    }
    for (var t = 0u; t < PATCH; t++) {
        let token = first_token + own_token + t;
        for (var r = 0u; r < PATCH; r++) {
            let row = first_row + own_row + r;
            if token < params.tokens && row < params.rows {
                let at = token * params.y_stride + params.y_first + row;
                var total = bias[row] + sums[t][r];
                if params.add != 0u {
                    total += y[at];
                }
                y[at] = total;
            }
        }
    }
}
