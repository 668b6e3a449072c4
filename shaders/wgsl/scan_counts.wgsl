// Sums of the counts before each, row by row, in place, and of all.
//
//   totals[r] = sum over n of counts[r, n],   counts[r, n] = sum over m < n of counts[r, m]
//
// Grid: a workgroup a row, workgroup_id.x.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | counts | [num_rows, num_counts] u32 | read, write |
// | 2 | totals | [num_rows] u32 | write |
//
// No counts: a total of 0.
// Accuracy: exact, up to 2^32.

const GROUP: u32 = 256u;

struct Params {
    num_counts: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>;
@group(0) @binding(2) var<storage, read_write> totals: array<u32>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    var before = 0u;
    for (var first = 0u; first < params.num_counts; first += GROUP) {
        let at = group.x * params.num_counts + first + index;
        let is_inside = first + index < params.num_counts;
        var own = 0u;
        if is_inside {
            own = counts[at];
        }
        let sums = group_before(own, index);
        if is_inside {
            counts[at] = before + sums.x;
        }
        before += sums.y;
    }
    if index == 0u {
        totals[group.x] = before;
    }
}
