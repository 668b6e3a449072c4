//! Scores of coded keys, and what selects by them.

use crate::devices::places_or_skip;
use crate::wrong::{all_seen, damage};
use crate::{scores, select};

#[test]
fn wrong_score_planes_is_seen() {
    let damage = |what, from, to| damage("score_planes", what, from, to);
    all_seen(
        places_or_skip(),
        scores::score_planes_on,
        &[
            damage("a swapped head", "finals[first_qo + h]", "finals[first_qo + heads - 1u - h]"),
            damage("a token off by one", "= index % STRIP;", "= (index + 1u) % STRIP;"),
            damage("a span out of place", "span.first_token + index", "index"),
            damage("codes of the first span", "= span.place +", "= spans[0].place +"),
            damage("a skipped barrier before the sums", "workgroupBarrier();\n        if", "if"),
            damage(
                "a skipped barrier behind the sums",
                "        workgroupBarrier();\n    }\n    if is_inside",
                "    }\n    if is_inside",
            ),
            damage(
                "tables of the planes before",
                "tile[at] = term_of(value);",
                "if first == 0u { tile[at] = term_of(value); }",
            ),
        ],
    );
}

#[test]
fn a_wrong_selection_is_seen() {
    all_seen(
        places_or_skip(),
        select::select_on,
        &[
            damage(
                "score_lse",
                "a token off by one",
                "group.x * CHUNK + lane.index;",
                "group.x * CHUNK + lane.index + 1u;",
            ),
            damage(
                "top_p_begin",
                "resident tokens forgotten",
                "params.top_p - resident_mass",
                "params.top_p",
            ),
            damage(
                "top_p_count",
                "a skipped barrier before the counts are read",
                "workgroupBarrier();\n    for (var bin",
                "for (var bin",
            ),
            damage(
                "top_p_find",
                "the histogram of the level before",
                "        counts[at] = 0u;\n",
                "",
            ),
            damage(
                "top_p_find",
                "a skipped barrier",
                "workgroupBarrier();\n        sum_counts[index] +=",
                "sum_counts[index] +=",
            ),
            damage("top_p_ties", "a sum of too few", "= sums.y;", "= sums.x;"),
            damage(
                "scan_counts",
                "a chunk off by one",
                "counts[at] = before + sums.x;",
                "counts[at] += before + sums.x;",
            ),
            damage(
                "top_p_take",
                "a swapped head",
                "let head = first_head + g;",
                "let head = first_head + params.group_size - 1u - g;",
            ),
            damage("top_p_take", "a token off by one", "+ at] = t;", "+ at] = t + 1u;"),
            damage(
                "top_p_take",
                "a skipped barrier",
                "workgroupBarrier();\n        scan_slots[index] +=",
                "scan_slots[index] +=",
            ),
        ],
    );
}
