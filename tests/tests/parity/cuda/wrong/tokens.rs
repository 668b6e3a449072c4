//! Twins of what picks a token.

use crate::cuda::emulation::sites;
use crate::sample;
use crate::wrong::{all_seen, damage};

#[test]
fn a_wrong_argmax_is_seen() {
    let damage = |what, from, to| damage("argmax", what, from, to);
    let damages = [
        damage("the row before", "logits + blockIdx.x *", "logits + (max(blockIdx.x, 1u) - 1) *"),
        damage("a token off by one", "{key, id}", "{key, id + 1}"),
        damage("the last of equals", "b.id < a.id", "b.id > a.id"),
        damage(
            "a skipped barrier",
            "bests[index] = best;\n    __syncthreads();",
            "bests[index] = best;",
        ),
        damage(
            "a last stretch forgotten",
            "id < params.vocab_size;",
            "id + GROUP <= params.vocab_size;",
        ),
    ];
    all_seen(sites(), sample::argmax_on, &damages);
    let damages = [
        damage("NaN as a token", "KEY_INFINITE ? BAD_LOGIT", "0xffffffff ? 0"),
        damage("no token as one", "NO_TOKEN}", "0}"),
        damage("zeros that differ", "bits > 0x80000000", "bits >= 0x80000000"),
    ];
    all_seen(sites(), sample::no_token_on, &damages);
}

#[test]
fn a_wrong_sample_is_seen() {
    let damage = |what, from, to| damage("sample", what, from, to);
    let damages = [
        damage("the row before", "logits + row *", "logits + (max(row, 1u) - 1) *"),
        damage("the number of the first row", "kept, uniforms[row]", "kept, uniforms[0]"),
        damage("a token off by one", "*drawn_id = id;", "*drawn_id = id + 1;"),
        damage(
            "a skipped barrier",
            "masses[threadIdx.x] = mass;\n    __syncthreads();",
            "masses[threadIdx.x] = mass;",
        ),
        damage("no min-p", "heavy_tokens(own, kept, params.min_p)", "kept"),
        damage("top-p of the sum of all", "params.top_p * mass_of(own, kept)", "params.top_p"),
        damage("the last of equals", "rank == prefix.ties", "rank >= prefix.ties"),
    ];
    all_seen(sites(), sample::sample_on, &damages);
    let damages = [
        damage("NaN as a token", "num_bad > 0 ? BAD_LOGIT : NO_TOKEN", "NO_TOKEN"),
        damage("a token of a bad row", "own.end = own.first;", ""),
    ];
    all_seen(sites(), sample::no_token_on, &damages);
}
