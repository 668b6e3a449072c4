// Subgroup operations of the device.
//
// Interface, the same in every `subgroup_` part: `Lane`, `sub_sum`, `sub_max`, `sub_is_first`, `sub_index`, `sub_count`.
// What a subgroup is, how many threads it has and which of a workgroup's threads these are is the device's to say: a
// kernel may depend on none of it.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) num_subgroups: u32,
    @builtin(subgroup_invocation_id) place: u32,
}

fn sub_sum(x: f32, lane: Lane) -> f32 {
    return subgroupAdd(x);
}

fn sub_max(x: f32, lane: Lane) -> f32 {
    return subgroupMax(x);
}

fn sub_is_first(lane: Lane) -> bool {
    return lane.place == 0u;
}

fn sub_index(lane: Lane) -> u32 {
    return lane.subgroup;
}

fn sub_count(lane: Lane) -> u32 {
    return lane.num_subgroups;
}
