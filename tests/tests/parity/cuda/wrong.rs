//! Twins that are wrong on purpose are seen to be, by the same cases and comparers that hold the right ones.

mod codes;
mod tokens;

use super::emulation::sites;
use crate::wrong::{all_seen, damage};
use crate::{attention, scores, select};

#[test]
fn wrong_attend_rows_is_seen() {
    all_seen(
        sites(),
        attention::attend_rows_on,
        &[
            damage(
                "attend_rows",
                "a swapped head",
                "part.state * params.group_size + head;",
                "part.state * params.group_size + (params.group_size - 1 - head);",
            ),
            damage(
                "attend_rows",
                "a token off by one",
                "const unsigned token = first + index;",
                "const unsigned token = first + index + 1;",
            ),
            damage(
                "attend_rows",
                "a skipped barrier",
                "what this one reads.\n        __syncthreads();",
                "what this one reads.\n",
            ),
            damage(
                "attend_rows",
                "places of the tile before",
                "places[index] = place;",
                "if (first == 0) { places[index] = place; }",
            ),
            damage(
                "attend_rows",
                "a part that begins with its page",
                "part.first_slot + token;",
                "token;",
            ),
            damage(
                "attend_rows",
                "an output that nobody asked for",
                "if (pair < pairs && params.writes_out != 0) {\n            out[",
                "if (pair < pairs) {\n            out[",
            ),
        ],
    );
}

#[test]
fn wrong_merge_states_is_seen() {
    all_seen(
        sites(),
        attention::merge_states_on,
        &[
            damage(
                "merge_states",
                "a swapped head",
                "const unsigned state = ids[s] * params.group_size + head;",
                "const unsigned state = ids[s] * params.group_size + (params.group_size - 1 - head);",
            ),
            damage(
                "merge_states",
                "a state off by one",
                "for (unsigned s = begin; s < end; s++)",
                "for (unsigned s = begin + 1; s < end; s++)",
            ),
            damage(
                "merge_states",
                "states as they lie",
                "own_total += expf(lses[ids[s] *",
                "own_total += expf(lses[s *",
            ),
            damage(
                "merge_states",
                "a skipped barrier",
                "__syncthreads();\n    float sum = 0.0f;",
                "float sum = 0.0f;",
            ),
        ],
    );
}

#[test]
fn wrong_prefill_is_seen() {
    all_seen(
        sites(),
        attention::prefill_on,
        &[
            damage(
                "prefill",
                "a swapped head",
                "head / (params.num_qo_heads / params.num_kv_heads)",
                "head % params.num_kv_heads",
            ),
            damage("prefill", "a token off by one", "before + own_row + 1)", "before + own_row)"),
            damage(
                "prefill",
                "a skipped barrier",
                "        __syncthreads();\n        // Keys of this tile",
                "        // Keys of this tile",
            ),
            damage(
                "prefill",
                "keys of the tile before",
                "k_chunk[at] = is_inside",
                "if (first_key == 0) k_chunk[at] = is_inside",
            ),
            damage(
                "prefill",
                "earlier segments forgotten",
                "value = plus_scaled(value, keep,",
                "value = plus_scaled(value, 0.0f,",
            ),
            damage(
                "prefill",
                "an lse merged before all have read it",
                "    __syncthreads();\n    if (index < num_queries)",
                "    if (index < num_queries)",
            ),
        ],
    );
}

#[test]
fn wrong_score_planes_is_seen() {
    all_seen(
        sites(),
        scores::score_planes_on,
        &[
            damage(
                "score_planes",
                "a swapped head",
                "finals[first_qo + h]",
                "finals[first_qo + heads - 1 - h]",
            ),
            damage(
                "score_planes",
                "a token off by one",
                "const unsigned slot = index % STRIP;",
                "const unsigned slot = (index + 1) % STRIP;",
            ),
            damage("score_planes", "a span out of place", "span.first_token + index", "index"),
            damage("score_planes", "a skipped barrier", "__syncthreads();\n        if", "if"),
            damage(
                "score_planes",
                "tables of the planes before",
                "tile[at] = head",
                "if (first == 0) tile[at] = head",
            ),
        ],
    );
}

#[test]
fn a_wrong_selection_is_seen() {
    all_seen(
        sites(),
        select::select_on,
        &[
            damage(
                "score_lse",
                "a token off by one",
                "blockIdx.x * CHUNK + threadIdx.x;",
                "blockIdx.x * CHUNK + threadIdx.x + 1;",
            ),
            damage(
                "top_p_begin",
                "resident tokens forgotten",
                "params.top_p - resident_mass",
                "params.top_p",
            ),
            damage(
                "top_p_count",
                "a skipped barrier",
                "__syncthreads();\n    const ScoreRow",
                "const ScoreRow",
            ),
            damage(
                "top_p_find",
                "the histogram of the level before",
                "        counts[at] = 0;\n",
                "",
            ),
            damage("top_p_ties", "a sum of too few", "= sums.all;", "= sums.before;"),
            damage(
                "scan_counts",
                "a chunk off by one",
                "counts[at] = before + sums.before;",
                "counts[at] += before + sums.before;",
            ),
            damage(
                "top_p_take",
                "a swapped head",
                "const unsigned head = first_head + g;",
                "const unsigned head = first_head + params.group_size - 1 - g;",
            ),
            damage("top_p_take", "a token off by one", "+ at] = t;", "+ at] = t + 1;"),
        ],
    );
}
