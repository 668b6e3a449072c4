// Subgroup operations of EMULATED_SIZE threads, in workgroup memory: for sizes that the device at hand does not have.
//
// Interface as in `subgroup_native`. For tests only: it is slower than `reduce_workgroup`.

override EMULATED_SIZE: u32 = 32u;

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> emulated_slots: array<f32, GROUP>;

fn sub_first(lane: Lane) -> u32 {
    return lane.index - lane.index % EMULATED_SIZE;
}

fn sub_sum(x: f32, lane: Lane) -> f32 {
    emulated_slots[lane.index] = x;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = sub_first(lane); i < min(sub_first(lane) + EMULATED_SIZE, GROUP); i++) {
        sum += emulated_slots[i];
    }
    workgroupBarrier();
    return sum;
}

fn sub_max(x: f32, lane: Lane) -> f32 {
    emulated_slots[lane.index] = x;
    workgroupBarrier();
    var largest = x;
    for (var i = sub_first(lane); i < min(sub_first(lane) + EMULATED_SIZE, GROUP); i++) {
        largest = max(largest, emulated_slots[i]);
    }
    workgroupBarrier();
    return largest;
}

fn sub_is_first(lane: Lane) -> bool {
    return lane.index == sub_first(lane);
}

fn sub_index(lane: Lane) -> u32 {
    return lane.index / EMULATED_SIZE;
}

fn sub_count(lane: Lane) -> u32 {
    return (GROUP + EMULATED_SIZE - 1u) / EMULATED_SIZE;
}
