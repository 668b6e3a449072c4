// Products of a weight matrix with a few vectors, each read from memory once for each vector.
//
//   y[t, r] = (add ? y[t, r] : 0) + bias[r] + sum over c of weight[r, c] * x[t, c]
//
// Grid: a workgroup ROWS rows, workgroup_id.x + workgroup_id.z * num_workgroups.x of them, of the vector
// t = workgroup_id.y; THREADS threads a row stride over its blocks of 32 columns.
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
// Accuracy: f32; a thread sums 32 / 4 partial dot products of four a block.

const ROWS: u32 = 8u;
const THREADS: u32 = 8u;
const GROUP: u32 = ROWS * THREADS;

struct Params {
    rows: u32,
    num_blocks: u32,
    y_first: u32,
    y_stride: u32,
    add: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

var<workgroup> partial_sums: array<f32, GROUP>;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let row = (group.x + group.z * groups.x) * ROWS + index / THREADS;
    let token = group.y;
    let thread = index % THREADS;
    var sum = 0.0;
    if row < params.rows {
        for (var b = thread; b < params.num_blocks; b += THREADS) {
            let weights = weights_of(row * params.num_blocks + b);
            let start = (token * params.num_blocks + b) * 8u;
            for (var i = 0u; i < 8u; i++) {
                sum += dot(weights[i], x[start + i]);
            }
        }
    }
    partial_sums[index] = sum;
    workgroupBarrier();
    if thread == 0u && row < params.rows {
        var total = bias[row];
        for (var i = 0u; i < THREADS; i++) {
            total += partial_sums[index + i];
        }
        let at = token * params.y_stride + params.y_first + row;
        if params.add != 0u {
            total += y[at];
        }
        y[at] = total;
    }
}
