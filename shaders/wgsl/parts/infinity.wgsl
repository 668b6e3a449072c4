// Minus infinity, which WGSL has no literal for: the lse of an empty state.
fn minus_infinity() -> f32 {
    var bits = 0xff800000u;
    return bitcast<f32>(bits);
}
