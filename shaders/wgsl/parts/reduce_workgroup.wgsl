// Sums and maxima over the GROUP threads of a workgroup, by halving in workgroup memory.
//
// Interface, the same in every `reduce_` part: `Lane`, `group_sum`, `group_max`. A kernel names GROUP, a power of two,
// takes a `Lane` as a parameter of its entry point and calls from uniform control flow. Every thread gets the result.
// Order of additions: by halves of the workgroup, the same in every run.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> reduce_slots: array<f32, GROUP>;

fn group_sum(x: f32, lane: Lane) -> f32 {
    reduce_slots[lane.index] = x;
    workgroupBarrier();
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        if lane.index < half {
            reduce_slots[lane.index] += reduce_slots[lane.index + half];
        }
        workgroupBarrier();
    }
    let sum = reduce_slots[0];
    workgroupBarrier();
    return sum;
}

fn group_max(x: f32, lane: Lane) -> f32 {
    reduce_slots[lane.index] = x;
    workgroupBarrier();
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        if lane.index < half {
            reduce_slots[lane.index] = max(reduce_slots[lane.index], reduce_slots[lane.index + half]);
        }
        workgroupBarrier();
    }
    let largest = reduce_slots[0];
    workgroupBarrier();
    return largest;
}
