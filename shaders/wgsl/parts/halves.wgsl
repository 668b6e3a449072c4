// Numbers as bits of f16, rounded the same on every device: what WGSL's own conversions round to is the device's to say.

fn half_value(bits: u32) -> f32 {
    return unpack2x16float(bits).x;
}

// The nearest f16, ties to even, held at the ends of its range.
fn half_of(value: f32) -> u32 {
    let bits = bitcast<u32>(clamp(value, -65504.0, 65504.0));
    let sign = bits >> 16u & 0x8000u;
    let size = bits & 0x7fffffffu;
    // Below the least normal value, whole multiples of 2^-24.
    if size < 0x38800000u {
        return sign | u32(round(bitcast<f32>(size) * 16777216.0));
    }
    return sign | ((size + 0xfffu + (size >> 13u & 1u)) >> 13u) - 0x1c000u;
}

// The largest f16 that is not above a value; the least of all where there is none.
fn half_below(value: f32) -> u32 {
    let nearest = half_of(value);
    if half_value(nearest) <= value || nearest == 0xfbffu {
        return nearest;
    }
    // Below zero comes the least in size of those with a sign.
    if (nearest & 0x7fffu) == 0u {
        return 0x8001u;
    }
    return select(nearest - 1u, nearest + 1u, nearest >= 0x8000u);
}
