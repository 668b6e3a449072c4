// Sums and maxima over the GROUP threads of a workgroup: of each subgroup, then of the subgroups in order.
//
// Interface as in `reduce_workgroup`; stands on a `subgroup_` part. A subgroup has four threads or more.

var<workgroup> reduce_slots: array<f32, GROUP / 4u>;

fn group_sum(x: f32, lane: Lane) -> f32 {
    let of_subgroup = sub_sum(x, lane);
    if sub_is_first(lane) {
        reduce_slots[sub_index(lane)] = of_subgroup;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < sub_count(lane); i++) {
        sum += reduce_slots[i];
    }
    workgroupBarrier();
    return sum;
}

fn group_max(x: f32, lane: Lane) -> f32 {
    let of_subgroup = sub_max(x, lane);
    if sub_is_first(lane) {
        reduce_slots[sub_index(lane)] = of_subgroup;
    }
    workgroupBarrier();
    var largest = reduce_slots[0];
    for (var i = 1u; i < sub_count(lane); i++) {
        largest = max(largest, reduce_slots[i]);
    }
    workgroupBarrier();
    return largest;
}
