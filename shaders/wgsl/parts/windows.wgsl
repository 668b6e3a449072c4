// Integers of up to 4 bits on a grid of steps of eighths of an octave: 2^bits neighbours, whole or shifted by half a step.
//
// Stands on `octaves`.

struct Window {
    // The step is 2^(exponent / 8), from -128 to 127.
    exponent: i32,
    // The middle of the values, in half steps, from -128 to 127.
    centre: i32,
}

fn step_of(exponent: i32) -> f32 {
    return octave_scale(u32(exponent + 128));
}

// How many steps the code 0 stands for.
fn first_of(window: Window, last_code: f32) -> f32 {
    return 0.5 * (f32(window.centre) - last_code);
}

// As it is stored, in two bytes.
fn window_bits(window: Window) -> u32 {
    return u32(window.exponent + 128) | (u32(window.centre) & 0xffu) << 8u;
}

fn window_of_bits(bits: u32) -> Window {
    return Window(i32(bits & 0xffu) - 128, i32(bits << 16u) >> 24u);
}
