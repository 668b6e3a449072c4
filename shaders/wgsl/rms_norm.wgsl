// Root mean square norm of rows.
//
//   y[r, c] = x[r, c] * weight[c] / sqrt(mean over c of x[r, c]^2 + eps)
//
// Grid: a workgroup a row, r = workgroup_id.x + workgroup_id.y * num_workgroups.x; threads stride over columns.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | weight | [cols] f32 | read |
// | 2 | x | [rows, cols] f32 | read |
// | 3 | y | [rows, cols] f32 | write |
//
// Requires cols > 0. No rows: no workgroups. A row that holds NaN or an infinity gives NaN.
// Accuracy: f32 sums of at most ceil(cols / GROUP) terms a thread, then of the threads.
// Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.

const GROUP: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let row = group.x + group.y * groups.x;
    let is_inside = row < params.rows;
    let start = row * params.cols;
    var squares = 0.0;
    if is_inside {
        for (var c = lane.index; c < params.cols; c += GROUP) {
            let value = x[start + c];
            squares += value * value;
        }
    }
    let mean = group_sum(squares, lane) / f32(params.cols);
    if is_inside {
        let scale = 1.0 / sqrt(mean + params.eps);
        for (var c = lane.index; c < params.cols; c += GROUP) {
            y[start + c] = x[start + c] * scale * weight[c];
        }
    }
}
