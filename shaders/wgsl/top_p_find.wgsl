// The bin in which a head's selection ends, which gives the next bits of the key of its last token.
//
// Bins are taken from the largest key down until
//
//   (mass >= target_mass and count >= at_least) or count >= at_most
//
// holds. At the last level all tokens of a bin have one weight, and as many of them are taken as are needed. The
// histogram is cleared for the next level.
//
// Grid: a workgroup a query head, workgroup_id.x.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | choices | [num_qo_heads] Choice | read, write |
// | 2 | counts | [num_qo_heads, 1024] u32 | read, write |
// | 3 | rests | [num_qo_heads, 1024] u32 | read, write |
//
// Where nothing has to be taken, or at_most is 0, no token is; where even all of them are not enough, all are.
// Accuracy: masses are f32 sums of 1,024 bins: tokens whose taking would move the mass by less than 1e-4 of itself may
// fall either way.
// Source: HCAttention, arXiv 2507.19823, section 3.3; ties fall to the lower position.

const BINS: u32 = 1024u;
const OWN_BINS: u32 = BINS / GROUP;

struct Params {
    shift: u32,
    // What the sum of rests counts in, of the exponent of the bin.
    rest_unit: f32,
    at_least: u32,
    at_most: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> choices: array<Choice>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;
@group(0) @binding(3) var<storage, read_write> rests: array<u32>;

var<workgroup> sum_counts: array<u32, GROUP>;
var<workgroup> sum_masses: array<f32, GROUP>;
var<workgroup> found: atomic<u32>;

fn is_enough(choice: Choice, count: u32, mass: f32) -> bool {
    return (mass >= choice.target_mass && count >= params.at_least) || count >= params.at_most;
}

// The least key of a bin.
fn least_key(key: u32, bin: u32) -> u32 {
    return key | (bin << params.shift);
}

fn mass_of(key: u32, bin: u32, count: u32, rest: u32) -> f32 {
    let least = least_key(key, bin);
    let exponent = bitcast<f32>(least & 0x7f800000u);
    return f32(count) * bitcast<f32>(least) + exponent * params.rest_unit * f32(rest);
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.x;
    let choice = choices[head];
    if index == 0u {
        atomicStore(&found, BINS);
    }
    // Thread 0 has the largest keys; a thread's bins fall, too.
    var own_counts: array<u32, OWN_BINS>;
    var own_masses: array<f32, OWN_BINS>;
    var count = 0u;
    var mass = 0.0;
    for (var i = 0u; i < OWN_BINS; i++) {
        let bin = BINS - 1u - index * OWN_BINS - i;
        let at = head * BINS + bin;
        own_counts[i] = counts[at];
        own_masses[i] = mass_of(choice.key, bin, counts[at], rests[at]);
        if counts[at] == 0u {
            own_masses[i] = 0.0;
        }
        count += own_counts[i];
        mass += own_masses[i];
        counts[at] = 0u;
        rests[at] = 0u;
    }
    sum_counts[index] = count;
    sum_masses[index] = mass;
    workgroupBarrier();
    // Sums of this thread and all before it.
    for (var step = 1u; step < GROUP; step <<= 1u) {
        var before_count = 0u;
        var before_mass = 0.0;
        if index >= step {
            before_count = sum_counts[index - step];
            before_mass = sum_masses[index - step];
        }
        workgroupBarrier();
        sum_counts[index] += before_count;
        sum_masses[index] += before_mass;
        workgroupBarrier();
    }
    // Whether the resident tokens are enough: a question of the first level alone.
    let is_none = params.shift == 20u && is_enough(choice, 0u, 0.0);
    if choice.is_found == 0u && is_none {
        if index == 0u {
            choices[head].key = 0xffffffffu;
            choices[head].ties = 0u;
            choices[head].is_found = 1u;
        }
    } else if choice.is_found == 0u {
        var above = choice.above + sum_counts[index] - count;
        var mass_above = choice.mass + (sum_masses[index] - mass);
        if index == 0u {
            mass_above = choice.mass;
        }
        for (var i = 0u; i < OWN_BINS; i++) {
            let next = above + own_counts[i];
            let next_mass = mass_above + own_masses[i];
            if own_counts[i] > 0u && is_enough(choice, next, next_mass) {
                atomicMin(&found, index * OWN_BINS + i);
            }
            above = next;
            mass_above = next_mass;
        }
    }
    workgroupBarrier();
    let place = atomicLoad(&found);
    if choice.is_found != 0u || is_none {
        return;
    }
    if place == BINS {
        // All of them are not enough, or, behind the first level, were so but for rounding: they are taken down to the
        // least key that the bits found so far allow.
        if index == 0u {
            choices[head].ties = 0xffffffffu;
            choices[head].is_found = 1u;
        }
        return;
    }
    if place / OWN_BINS == index {
        var above = choice.above + sum_counts[index] - count;
        var mass_above = choice.mass + (sum_masses[index] - mass);
        if index == 0u {
            mass_above = choice.mass;
        }
        for (var i = 0u; i < place % OWN_BINS; i++) {
            above += own_counts[i];
            mass_above += own_masses[i];
        }
        let key = least_key(choice.key, BINS - 1u - place);
        choices[head].key = key;
        choices[head].above = above;
        choices[head].mass = mass_above;
        if params.shift == 0u {
            let most = min(own_counts[place % OWN_BINS], params.at_most - above);
            let by_mass = ceil((choice.target_mass - mass_above) / bitcast<f32>(key));
            let by_count = params.at_least - min(params.at_least, above);
            let needed = max(u32(clamp(by_mass, 1.0, f32(most))), by_count);
            choices[head].ties = clamp(needed, 1u, most);
            choices[head].is_found = 1u;
        }
    }
}
