//! What a layer does beside attention. Its kernels have no twins.

use crate::devices::places_or_skip;
use crate::layers;
use crate::wrong::{all_seen, damage};

#[test]
fn a_wrong_embed_is_seen() {
    let damage = |what, from, to| damage("embed", what, from, to);
    all_seen(
        places_or_skip(),
        layers::embed_on,
        &[
            damage(
                "a swapped row",
                "let row = id - params.first_row;",
                "let row = params.rows - 1u - (id - params.first_row);",
            ),
            damage("a token off by one", "ids[token]", "ids[max(token, 1u) - 1u]"),
            damage("swapped columns", "= weights[i]", "= weights[7u - i]"),
            damage("the first block", "row * params.num_blocks + b", "row * params.num_blocks"),
            damage("a last row forgotten", ">= params.rows", "+ 1u >= params.rows"),
            damage("halves: the pair before", "16u + 2u * i + 1u]", "16u + 2u * i]"),
            damage("bytes: scales as codes", "weight_codes[block * 8u", "weight_scales[block * 8u"),
            damage("nibbles: the half beside", "16u * (i % 2u)", "16u - 16u * (i % 2u)"),
        ],
    );
}

#[test]
fn a_wrong_rms_norm_is_seen() {
    let damage = |what, from, to| damage("rms_norm", what, from, to);
    all_seen(
        places_or_skip(),
        layers::rms_norm_on,
        &[
            damage(
                "a swapped row",
                "= x[start + c] * scale",
                "= x[(params.rows - 1u - row) * params.cols + c] * scale",
            ),
            damage("a column off by one", "scale * weight[c]", "scale * weight[max(c, 1u) - 1u]"),
            damage("a sum that begins too late", "var c = lane.index;", "var c = lane.index + 1u;"),
            damage(
                "weights of the first stretch",
                "scale * weight[c]",
                "scale * weight[c % GROUP]",
            ),
            damage("squares of the first row", "value = x[start + c]", "value = x[c]"),
            damage("a skipped barrier", "workgroupBarrier();\n    for", "for"),
            damage(
                "a skipped barrier of a half",
                "        }\n        workgroupBarrier();",
                "        }\n",
            ),
        ],
    );
}

#[test]
fn a_wrong_gemv_is_seen() {
    let damage = |what, from, to| damage("gemv", what, from, to);
    all_seen(
        places_or_skip(),
        layers::linear_on,
        &[
            damage("a swapped row", "(row * params", "((params.rows - 1u - row) * params"),
            damage("a token off by one", "(token * params", "((max(token, 1u) - 1u) * params"),
            damage("a column off by one", "x[start + i]", "x[start + (i + 1u) % 8u]"),
            damage("the first block", "row * params.num_blocks + b", "row * params.num_blocks"),
            damage("the bias of another row", "= bias[row]", "= bias[params.rows - 1u - row]"),
            damage("a thread forgotten", "i < THREADS", "i + 1u < THREADS"),
            damage("sums of the first row", "partial_sums[index + i]", "partial_sums[i]"),
            damage("what was there before", "params.add != 0u", "true"),
            damage("products of the rows of the first token", "= token * params.y_stride", "= 0u"),
        ],
    );
}

#[test]
fn a_wrong_gemm_is_seen() {
    let damage = |what, from, to| damage("gemm", what, from, to);
    all_seen(
        places_or_skip(),
        layers::linear_on,
        &[
            damage("a swapped row", "(row * params", "((params.rows - 1u - row) * params"),
            damage("a token off by one", "(token * params", "((max(token, 1u) - 1u) * params"),
            damage("swapped columns", "= weights[i]", "= weights[7u - i]"),
            damage("the first block", "row * params.num_blocks + b", "row * params.num_blocks"),
            damage("the bias of the first tile", "bias[row]", "bias[own_row + r]"),
            damage(
                "the tile of the block before",
                "x_tile[(at % 8u) * TILE + at / 8u] = four;",
                "if b == 0u { x_tile[(at % 8u) * TILE + at / 8u] = four; }",
            ),
            damage(
                "a skipped barrier before the products",
                "workgroupBarrier();\n        for",
                "for",
            ),
            damage(
                "a skipped barrier behind the products",
                "        workgroupBarrier();\n    }\n",
                "    }\n",
            ),
            damage("what was there before", "params.add != 0u", "true"),
        ],
    );
}

#[test]
fn a_wrong_rope_is_seen() {
    let damage = |what, from, to| damage("rope", what, from, to);
    all_seen(
        places_or_skip(),
        layers::rope_on,
        &[
            damage(
                "a swapped head",
                "turns[head / params.num_heads",
                "turns[head % params.num_heads",
            ),
            damage(
                "a token off by one",
                "turns[head / params.num_heads",
                "turns[max(head / params.num_heads, 1u) - 1u",
            ),
            damage("turns of the first token", "head / params.num_heads * params.half + i", "i"),
            damage("pairs side by side", "let high = x[at + params.half]", "let high = x[at + 1u]"),
            damage("a turn back", "low * turn.x - high * turn.y", "low * turn.x + high * turn.y"),
            damage("a last pair forgotten", "if pair >=", "if pair + 1u >="),
        ],
    );
}

#[test]
fn a_wrong_swiglu_is_seen() {
    let damage = |what, from, to| damage("swiglu", what, from, to);
    all_seen(
        places_or_skip(),
        layers::swiglu_on,
        &[
            damage("gates that are not", "* up[at]", "* gate[at]"),
            damage("swapped elements", "up[at]", "up[at].wzyx"),
            damage("elements off by one", "up[at]", "up[max(at, 1u) - 1u]"),
            damage("gates of the first workgroup", "gate[at]", "gate[index]"),
            damage("the last elements forgotten", "if at >=", "if at + 1u >="),
        ],
    );
}
