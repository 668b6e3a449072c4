// Keys as integers with a step for each channel and a scale for each token, in strips: what `alloc` stores.
//
//   x[t, i] = (key[t, channel[i]] - centre[i]) / step[i]
//   code[t, i] = round(x[t, i] / scale[t] + middle[i]), held at 0 and 2 * middle[i]
//   error(scale) = sum over i of weight[i] * (x[t, i] - scale * (code[t, i] - middle[i]))^2
//
// The scale is a byte e that means 2^((e - 128) / 8): the one of the least error of those tried, first around the ratio of
// the token's spread to the usual one, then around the best of these.
//
// Grid: a workgroup a token: of a span, workgroup_id.x, number workgroup_id.y. A thread adds up a scale's errors in every
// eighth channel, so that all scales are tried at once.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | spans | [num_spans] KeySpan, see `key_source` | read |
// | 2 | keys | f32 or f16, see `key_source` | read |
// | 3 | planes | see `strips` | read |
// | 4 | channels | [num_coders, head_dim] Channel, by coded position | read |
// | 5 | codes | strips, see `strips` | read, write |
//
// No tokens, no work. Requires finite keys and a head_dim of at most 256, in eights.
// Accuracy: sums in the order of the host; codes and scales are the host's but where the last bits of a quotient, a root, a
// logarithm, or a product and a sum that the device makes one, decide between two that are as near. Halves go to the even
// code.
// Source: docs/methods/hca.md.

const GROUP: u32 = 128u;
const LANES: u32 = 8u;
const NUM_COARSE: u32 = 13u;
const NUM_FINE: u32 = 6u;

struct Channel {
    channel: u32,
    centre: f32,
    step: f32,
    weight: f32,
    middle: f32,
    usual: f32,
}

@group(0) @binding(4) var<storage, read> channels: array<Channel>;

var<workgroup> weights: array<f32, MAX_CHANNELS>;
var<workgroup> middles: array<f32, MAX_CHANNELS>;
// The square of each coded channel over its usual spread; -1 for others.
var<workgroup> spreads: array<f32, MAX_CHANNELS>;
var<workgroup> errors: array<f32, GROUP>;

// Scales that are tried first, in eighths of an octave from the usual one: from -48 on in eights, from -24 to 12 in fours.
fn coarse(i: u32) -> i32 {
    return select(4 * i32(i) - 36, 8 * i32(i) - 48, i < 4u);
}

fn fine(i: u32) -> i32 {
    return select(i32(i) - 2, i32(i) - 3, i < 3u);
}

fn exponent_of(eighths: i32) -> u32 {
    return u32(clamp(eighths + 128, 0, 255));
}

fn nearest_code(value: f32, middle: f32) -> f32 {
    return round(clamp(value + middle, 0.0, 2.0 * middle));
}

// What the channels lane, lane + 8, .. leave under a scale.
fn error_of(lane: u32, scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    var sum = 0.0;
    for (var i = lane; i < params.head_dim; i += LANES) {
        let error = x[i] - scale * (nearest_code(x[i] * inverse, middles[i]) - middles[i]);
        sum += weights[i] * error * error;
    }
    return sum;
}

// The sum of a candidate's lanes.
fn error_at(candidate: u32) -> f32 {
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane++) {
        sum += errors[candidate * LANES + lane];
    }
    return sum;
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let span = spans[group.x];
    if group.y >= span.num_tokens {
        return;
    }
    let token = token_at(span, group.y);
    for (var i = index; i < params.head_dim; i += GROUP) {
        let own = channels[span.coder * params.head_dim + i];
        let is_coded = own.usual > 0.0 && own.step > 0.0;
        var value = 0.0;
        var spread = -1.0;
        if is_coded {
            let key = clamp(key_value(token.key, own.channel), -65504.0, 65504.0);
            value = (key - own.centre) / own.step;
            spread = (value / own.usual) * (value / own.usual);
        }
        x[i] = value;
        spreads[i] = spread;
        weights[i] = own.weight;
        middles[i] = own.middle;
    }
    workgroupBarrier();
    var total = 0.0;
    var num_coded = 0.0;
    for (var i = 0u; i < params.head_dim; i++) {
        if spreads[i] >= 0.0 {
            total += spreads[i];
            num_coded += 1.0;
        }
    }
    let ratio = max(sqrt(total / max(num_coded, 1.0)), 1e-4);
    let nearest = i32(round(8.0 * log2(ratio)));
    let candidate = index / LANES;
    var best = nearest;
    var least = 3.4028235e38;
    if candidate < NUM_COARSE {
        errors[index] = error_of(index % LANES, octave_scale(exponent_of(nearest + coarse(candidate))));
    }
    workgroupBarrier();
    for (var i = 0u; i < NUM_COARSE; i++) {
        let error = error_at(i);
        if error < least {
            least = error;
            best = nearest + coarse(i);
        }
    }
    workgroupBarrier();
    let around = best;
    if candidate < NUM_FINE {
        errors[index] = error_of(index % LANES, octave_scale(exponent_of(around + fine(candidate))));
    }
    workgroupBarrier();
    for (var i = 0u; i < NUM_FINE; i++) {
        let error = error_at(i);
        if error < least {
            least = error;
            best = around + fine(i);
        }
    }
    let exponent = exponent_of(best);
    let inverse = 1.0 / octave_scale(exponent);
    for (var i = index; i < params.head_dim; i += GROUP) {
        chosen[i] = u32(nearest_code(x[i] * inverse, middles[i]));
    }
    workgroupBarrier();
    write_codes(span.coder, token, index);
    if index == 0u {
        write_tail(token, 0u, 8u, exponent);
    }
}
