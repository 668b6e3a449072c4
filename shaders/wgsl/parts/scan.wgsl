// Sums of what the threads of a workgroup before each have.
//
// Called from uniform control flow by all GROUP threads.

var<workgroup> scan_slots: array<u32, GROUP>;

// The sum of `x` of the threads before this one, and of all threads.
fn group_before(x: u32, index: u32) -> vec2<u32> {
    scan_slots[index] = x;
    workgroupBarrier();
    for (var step = 1u; step < GROUP; step <<= 1u) {
        var before = 0u;
        if index >= step {
            before = scan_slots[index - step];
        }
        workgroupBarrier();
        scan_slots[index] += before;
        workgroupBarrier();
    }
    let sums = vec2(scan_slots[index] - x, scan_slots[GROUP - 1u]);
    workgroupBarrier();
    return sums;
}
