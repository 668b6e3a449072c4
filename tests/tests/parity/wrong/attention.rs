//! Attention over rows and over prompts, and the merge of what they give.

use crate::attention;
use crate::devices::places_or_skip;
use crate::wrong::{all_seen, damage};

#[test]
fn wrong_attend_rows_is_seen() {
    let damage = |what, from, to| damage("attend_rows", what, from, to);
    all_seen(
        places_or_skip(),
        attention::attend_rows_on,
        &[
            damage(
                "a swapped head",
                "params.group_size + head)",
                "params.group_size + (params.group_size - 1u - head))",
            ),
            damage("a token off by one", "= first + lane.index;", "= first + lane.index + 1u;"),
            damage(
                "a value of the next channel",
                "to_value + pair]",
                "to_value + (pair + 1u) % pairs]",
            ),
            damage("a scale forgotten", "params.sm_scale * q", "q"),
            damage(
                "a skipped barrier behind the query",
                "    }\n    workgroupBarrier();\n    var largest",
                "    }\n    var largest",
            ),
            damage(
                "a skipped barrier behind a tile",
                "this one reads.\n        workgroupBarrier();",
                "this one reads.\n",
            ),
            damage(
                "places of the tile before",
                "places[lane.index] = place;",
                "if first == 0u { places[lane.index] = place; }",
            ),
            damage("the query of the first KV head", "q[(part.kv_head *", "q[(0u *"),
            damage("a part that begins with its page", "part.first_slot + token;", "token;"),
            damage(
                "an output that nobody asked for",
                "params.writes_out != 0u {\n            out[",
                "true {\n            out[",
            ),
        ],
    );
}

#[test]
fn wrong_merge_states_is_seen() {
    let damage = |what, from, to| damage("merge_states", what, from, to);
    all_seen(
        places_or_skip(),
        attention::merge_states_on,
        &[
            damage(
                "a swapped head",
                "let state = ids[s] * params.group_size + head;",
                "let state = ids[s] * params.group_size + (params.group_size - 1u - head);",
            ),
            damage("a state off by one", "var s = begin; s", "var s = begin + 1u; s"),
            damage(
                "states as they lie",
                "own_total += exp(lses[ids[s] *",
                "own_total += exp(lses[s *",
            ),
            damage("a skipped barrier", "workgroupBarrier();\n    for", "for"),
        ],
    );
}

#[test]
fn wrong_prefill_is_seen() {
    let damage = |what, from, to| damage("prefill", what, from, to);
    all_seen(
        places_or_skip(),
        attention::prefill_on,
        &[
            damage(
                "a swapped head",
                "head / (params.num_qo_heads / params.num_kv_heads)",
                "head % params.num_kv_heads",
            ),
            damage("a token off by one", "before + index + 1u)", "before + index)"),
            damage(
                "a skipped barrier before the products",
                "workgroupBarrier();\n            for",
                "for",
            ),
            damage(
                "a skipped barrier behind the products",
                "            workgroupBarrier();\n        }\n",
                "        }\n",
            ),
            damage(
                "a skipped barrier behind the scores",
                "workgroupBarrier();\n        if index < QUERIES",
                "if index < QUERIES",
            ),
            damage(
                "an lse merged before all have read it",
                "storageBarrier();\n    if index < num_queries",
                "if index < num_queries",
            ),
            damage(
                "keys of the tile before",
                "k_chunk[at] = value;",
                "if first_key == 0u { k_chunk[at] = value; }",
            ),
            damage("values of the first tile", "v[((first_key + j) *", "v[(j *"),
            damage("earlier segments forgotten", "value += keep *", "value += 0.0 *"),
        ],
    );
}
