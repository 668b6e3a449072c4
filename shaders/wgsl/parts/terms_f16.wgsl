// Terms of sums in f16, for scores that only select.
//
// Interface as in `terms_f32`.

enable f16;

alias Term = f16;

fn term_of(value: f32) -> Term {
    return f16(clamp(value, -65504.0, 65504.0));
}
