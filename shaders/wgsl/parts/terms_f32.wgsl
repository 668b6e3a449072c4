// Terms of sums in f32.
//
// Interface, the same in every `terms_` part, which comes before all others: `Term` and `term_of`.

alias Term = f32;

fn term_of(value: f32) -> Term {
    return value;
}
