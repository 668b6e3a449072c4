// The next token: temperature, top-k, top-p, min-p, then one draw by a uniform number.
//
//   weight[i] = exp((logits[i] - max over j of logits[j]) / temperature)
//
// Tokens are ordered by falling logit, of equal ones by rising id. Kept are the first top_k; of these the fewest whose
// weights reach top_p of all; of these those of a weight of at least min_p. So what is kept is a prefix of the order: the
// tokens of larger keys than its last one's, and the first so many, by id, of that key. The token is where uniform times
// the sum of the kept weights falls when these lie end to end: in the order above where top_p < 1, else by id.
//
// Grid: a workgroup a row, workgroup_id.x; a thread has tokens that follow each other. The end of a prefix is found bit by
// bit, a pass over the logits for each bit of a key.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | logits | [num_rows, vocab_size] f32; minus infinity excludes a token | read |
// | 2 | uniforms | [num_rows] f32, from 0 to below 1 | read |
// | 3 | ids | [num_rows] u32 | write |
//
// No logit above minus infinity gives NO_TOKEN; one that is NaN or infinite gives BAD_LOGIT. Requires a temperature above
// 0, top_k of at least 1, top_p above 0.
// Accuracy: weights and their sums in f32; a token whose edge lies within the rounding of these, or of a number of 24 bits,
// may be its neighbour's.
// Source: crates/model/src/sampler.rs, whose rule this is, but for the penalty of repetitions, which is the caller's.

const GROUP: u32 = 256u;

struct Params {
    vocab_size: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
}

// The first tokens in order: all of larger keys, and `ties` of this one.
struct Prefix {
    key: u32,
    ties: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> uniforms: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;

var<workgroup> masses: array<f32, GROUP>;

// The tokens of a thread, and the highest logit of all.
struct Own {
    row: u32,
    first: u32,
    end: u32,
    highest: f32,
}

fn weight_of(logit: f32, highest: f32) -> f32 {
    return exp((logit - highest) / params.temperature);
}

// How many tokens have a key of at least so much.
fn count_from(own: Own, key: u32, lane: Lane) -> u32 {
    var count = 0u;
    for (var id = own.first; id < own.end; id++) {
        count += u32(key_of(logits[own.row + id]) >= key);
    }
    return group_before(count, lane.index).y;
}

// And their mass.
fn mass_from(own: Own, key: u32, lane: Lane) -> f32 {
    var mass = 0.0;
    for (var id = own.first; id < own.end; id++) {
        let logit = logits[own.row + id];
        if key_of(logit) >= key {
            mass += weight_of(logit, own.highest);
        }
    }
    return group_sum(mass, lane);
}

fn weight_at(own: Own, key: u32) -> f32 {
    return weight_of(logit_of(key), own.highest);
}

fn mass_of(own: Own, prefix: Prefix, lane: Lane) -> f32 {
    let above = mass_from(own, prefix.key + 1u, lane);
    return above + select(0.0, f32(prefix.ties) * weight_at(own, prefix.key), prefix.ties > 0u);
}

// The first `count` tokens, or all that are possible.
fn first_tokens(own: Own, count: u32, lane: Lane) -> Prefix {
    var key = 0u;
    for (var bit = 1u << 31u; bit > 0u; bit >>= 1u) {
        if count_from(own, key | bit, lane) >= count {
            key |= bit;
        }
    }
    let num_larger = count_from(own, key + 1u, lane);
    if key <= KEY_IMPOSSIBLE {
        return Prefix(KEY_IMPOSSIBLE, 0u);
    }
    return Prefix(key, count - num_larger);
}

// The fewest tokens of a prefix whose mass reaches `mass`, or, where it has to be more, is above it.
fn first_mass(own: Own, within: Prefix, mass: f32, is_above: bool, lane: Lane) -> Prefix {
    var key = 0u;
    for (var bit = 1u << 31u; bit > 0u; bit >>= 1u) {
        let from_key = mass_from(own, key | bit, lane);
        let is_enough = from_key > mass || (from_key == mass && !is_above);
        // All of the prefix has enough.
        if is_enough || (key | bit) <= within.key {
            key |= bit;
        }
    }
    let above = mass_from(own, key + 1u, lane);
    let num_larger = count_from(own, key + 1u, lane);
    let num_equal = count_from(own, key, lane) - num_larger;
    let available = select(num_equal, within.ties, key == within.key);
    let share = max(mass - above, 0.0) / weight_at(own, key);
    let needed = select(ceil(share), floor(share) + 1.0, is_above);
    return Prefix(key, u32(clamp(needed, 1.0, f32(max(available, 1u)))));
}

// The tokens of a prefix of a weight of at least `least`, at most 1: the first one's weight.
fn heavy_tokens(own: Own, within: Prefix, least: f32) -> Prefix {
    var below = 0u;
    for (var bit = 1u << 31u; bit > 0u; bit >>= 1u) {
        let key = below | bit;
        let is_light = key <= KEY_IMPOSSIBLE || (key < key_of(own.highest) && weight_at(own, key) < least);
        below = select(below, key, is_light);
    }
    if below < within.key {
        return within;
    }
    return Prefix(below, 0u);
}

// The token at a mass of those of a prefix that lie end to end by id, which is written by the thread that has it.
fn draw_by_id(own: Own, prefix: Prefix, uniform_number: f32, row: u32, lane: Lane) {
    var own_ties = 0u;
    for (var id = own.first; id < own.end; id++) {
        own_ties += u32(key_of(logits[own.row + id]) == prefix.key);
    }
    let first_rank = group_before(own_ties, lane.index).x;
    var rank = first_rank;
    var mass = 0.0;
    for (var id = own.first; id < own.end; id++) {
        let logit = logits[own.row + id];
        let key = key_of(logit);
        if key > prefix.key || (key == prefix.key && rank < prefix.ties) {
            mass += weight_of(logit, own.highest);
        }
        rank += u32(key == prefix.key);
    }
    masses[lane.index] = mass;
    workgroupBarrier();
    var before = 0.0;
    var total = 0.0;
    for (var i = 0u; i < GROUP; i++) {
        if i == lane.index {
            before = total;
        }
        total += masses[i];
    }
    // Below the total, whatever the product rounds to.
    let drawn = min(uniform_number * total, bitcast<f32>(bitcast<u32>(total) - 1u));
    if drawn < before || drawn >= before + mass {
        return;
    }
    rank = first_rank;
    var sum = before;
    for (var id = own.first; id < own.end; id++) {
        let logit = logits[own.row + id];
        let key = key_of(logit);
        let is_kept = key > prefix.key || (key == prefix.key && rank < prefix.ties);
        let weight = weight_of(logit, own.highest);
        if is_kept && weight > 0.0 {
            ids[row] = id;
            sum += weight;
            if sum > drawn {
                return;
            }
        }
        rank += u32(key == prefix.key);
    }
}

// The last token of a prefix, which is written by the thread that has it.
fn take_last(own: Own, prefix: Prefix, row: u32, lane: Lane) {
    var own_ties = 0u;
    for (var id = own.first; id < own.end; id++) {
        own_ties += u32(key_of(logits[own.row + id]) == prefix.key);
    }
    var rank = group_before(own_ties, lane.index).x;
    for (var id = own.first; id < own.end; id++) {
        if key_of(logits[own.row + id]) == prefix.key {
            rank++;
            if rank == prefix.ties {
                ids[row] = id;
            }
        }
    }
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let row = group.x;
    let num_own = (params.vocab_size + GROUP - 1u) / GROUP;
    let first = min(lane.index * num_own, params.vocab_size);
    let end = min(first + num_own, params.vocab_size);
    var own = Own(row * params.vocab_size, first, end, 0.0);
    let num_bad = count_from(own, KEY_INFINITE, lane);
    let num_possible = count_from(own, KEY_IMPOSSIBLE + 1u, lane);
    if num_bad > 0u || num_possible == 0u {
        // Nobody has tokens, and so nobody has the one that is drawn.
        own.end = own.first;
        if lane.index == 0u {
            ids[row] = select(NO_TOKEN, BAD_LOGIT, num_bad > 0u);
        }
    }
    var highest = -3.4028235e38;
    for (var id = own.first; id < own.end; id++) {
        highest = max(highest, logits[own.row + id]);
    }
    own.highest = group_max(highest, lane);
    var kept = first_tokens(own, params.top_k, lane);
    if params.top_p < 1.0 {
        let mass = params.top_p * mass_of(own, kept, lane);
        kept = first_mass(own, kept, mass, false, lane);
    }
    kept = heavy_tokens(own, kept, params.min_p);
    if params.top_p < 1.0 {
        let mass = uniforms[row] * mass_of(own, kept, lane);
        take_last(own, first_mass(own, kept, mass, true, lane), row, lane);
    } else {
        draw_by_id(own, kept, uniforms[row], row, lane);
    }
}
