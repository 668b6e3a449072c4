// Scales in eighths of an octave.

fn eighth(i: u32) -> f32 {
    switch i {
        case 0u: { return 1.0; }
        case 1u: { return 1.0905077; }
        case 2u: { return 1.1892071; }
        case 3u: { return 1.2968396; }
        case 4u: { return 1.4142135; }
        case 5u: { return 1.5422108; }
        case 6u: { return 1.6817929; }
        default: { return 1.8340081; }
    }
}

// 2^((byte - 128) / 8), exact but for the rounding of the eighths.
fn octave_scale(byte: u32) -> f32 {
    return eighth(byte & 7u) * bitcast<f32>((byte / 8u + 111u) << 23u);
}
