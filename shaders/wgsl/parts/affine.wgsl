// Affine integers with scale and zero in f16: the zero from below, the scale from above, so that no error is above half a
// step, and what was decoded is encoded to itself.
//
// Stands on `halves`.

// So often at most are scale and zero found again from what they decode the ends to.
const MAX_ROUNDS: u32 = 256u;

struct Affine {
    // Bits of f16.
    scale: u32,
    zero: u32,
}

fn reaches(zero: f32, scale: u32, last_code: f32, high: f32) -> bool {
    return zero + half_value(scale) * last_code >= high;
}

fn affine_between(low: f32, high: f32, last_code: f32) -> Affine {
    let zero_bits = half_below(low);
    let zero = half_value(zero_bits);
    var scale = half_of(max(high - zero, 0.0) / last_code);
    while scale < 0x7bffu && !reaches(zero, scale, last_code, high) {
        scale++;
    }
    while scale > 0u && reaches(zero, scale - 1u, last_code, high) {
        scale--;
    }
    return Affine(scale, zero_bits);
}

// Halves are rounded up.
fn affine_code(affine: Affine, value: f32, last_code: f32) -> u32 {
    if affine.scale == 0u {
        return 0u;
    }
    let steps = (value - half_value(affine.zero)) / half_value(affine.scale);
    let below = floor(steps);
    return u32(clamp(select(below, below + 1.0, steps - below >= 0.5), 0.0, last_code));
}

fn affine_value(affine: Affine, code: u32) -> f32 {
    return half_value(affine.zero) + half_value(affine.scale) * f32(code);
}

// Of values from `low` to `high`.
fn affine_of(low: f32, high: f32, last_code: f32) -> Affine {
    var affine = affine_between(low, high, last_code);
    for (var i = 0u; i < MAX_ROUNDS; i++) {
        let decoded_low = affine_value(affine, affine_code(affine, low, last_code));
        let decoded_high = affine_value(affine, affine_code(affine, high, last_code));
        let next = affine_between(decoded_low, decoded_high, last_code);
        let rises = half_value(next.zero) > half_value(affine.zero);
        if !rises && half_value(next.scale) >= half_value(affine.scale) {
            break;
        }
        affine = next;
    }
    return affine;
}
