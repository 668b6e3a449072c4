//! Twins of what makes codes, of what scores by them, and of what is made before.

use crate::cuda::emulation::sites;
use crate::wrong::{all_seen, damage};
use crate::{encode, groups, key_scores, tables};

#[test]
fn wrong_encode_integers_is_seen() {
    let damage = |what, from, to| damage("encode_integers", what, from, to);
    all_seen(
        sites(),
        encode::encode_integers_on,
        &[
            damage(
                "the keys of the first span",
                "keys + token.key",
                "keys + spans[0].key + blockIdx.y * params.key_stride",
            ),
            damage("a token off by one", "span.key + token *", "span.key + (max(token, 1u) - 1) *"),
            damage(
                "a skipped barrier",
                "affine_code(affine, x[i], last_code);\n    }\n    __syncthreads();",
                "affine_code(affine, x[i], last_code);\n    }\n",
            ),
            damage(
                "the key of the token before",
                "x[i] = key_value(",
                "if (blockIdx.y == 0) x[i] = key_value(",
            ),
            damage("the bits of other tokens", " & (mask << shift)", ""),
            damage("a scale of the neighbour", "token.slot) * width", "(token.slot ^ 1)) * width"),
            damage("a zero that is not below", "half_below(low)", "half_of(low)"),
        ],
    );
}

#[test]
fn wrong_encode_levels_is_seen() {
    let damage = |what, from, to| damage("encode_levels", what, from, to);
    all_seen(
        sites(),
        encode::encode_levels_on,
        &[
            damage("the centre of another head", "turns + span.coder * params.head_dim", "turns"),
            damage(
                "a skipped barrier",
                "x[low + half] = a - b;\n        }\n        __syncthreads();",
                "x[low + half] = a - b;\n        }\n",
            ),
            damage(
                "a sum that begins too late",
                "i = 0; i < params.head_dim; i++) {\n        energy",
                "i = 1; i < params.head_dim; i++) {\n        energy",
            ),
            damage("the last level forgotten", "level < last &&", "level + 1 < last &&"),
            damage(
                "a slot off by one",
                "const unsigned slot = span.slot + token;",
                "const unsigned slot = token;",
            ),
        ],
    );
}

#[test]
fn wrong_encode_allocated_is_seen() {
    let damage = |what, from, to| damage("encode_allocated", what, from, to);
    all_seen(
        sites(),
        encode::encode_allocated_on,
        &[
            damage("a swapped head", "channels[span.coder * params.head_dim + i]", "channels[i]"),
            damage("a token off by one", "span.key + token *", "span.key + (max(token, 1u) - 1) *"),
            damage(
                "a skipped barrier",
                "index % LANES, scale);\n    }\n    __syncthreads();",
                "index % LANES, scale);\n    }\n",
            ),
            damage(
                "errors of the scales before",
                "if (candidate < NUM_FINE) {",
                "if (candidate == 0) {",
            ),
            damage("a centre forgotten", " - own.centre)", ")"),
        ],
    );
}

#[test]
fn wrong_encode_channels_is_seen() {
    let damage = |what, from, to| damage("encode_channels", what, from, to);
    all_seen(
        sites(),
        encode::encode_channels_on,
        &[
            damage("the keys of the first span", "keys + span.key,", "keys + spans[0].key,"),
            damage("a token off by one", "keys + token *", "keys + (max(token, 1u) - 1) *"),
            damage(
                "a skipped barrier",
                "header_of(block, channel);\n    }\n    __syncthreads();",
                "header_of(block, channel);\n    }\n",
            ),
            damage("a scale of the neighbour", "= headers[channel];", "= headers[channel ^ 1];"),
            damage(
                "a search that ends too soon",
                "exponent >= clamped(bottom)",
                "exponent > clamped(bottom) + 1",
            ),
            damage("codes cut at words", "code >> (begin - bit)", "0"),
        ],
    );
}

#[test]
fn wrong_score_keys_is_seen() {
    let damage = |what, from, to| damage("score_keys", what, from, to);
    all_seen(
        sites(),
        key_scores::score_keys_on,
        &[
            damage("a swapped head", "finals[first_qo + h]", "finals[first_qo + heads - 1 - h]"),
            damage(
                "a token off by one",
                "codes + span.place, index)",
                "codes + span.place, max(index, 1u) - 1)",
            ),
            damage("a span out of place", "span.first_token + index;", "index;"),
            damage("a skipped barrier", "__syncthreads();\n        if", "if"),
            damage(
                "queries of the tile before",
                "tile[i] = head",
                "if (first == 0) tile[i] = head",
            ),
            damage("halves: the pair before", "at.row[channel / 2 + 1]", "at.row[channel / 2]"),
            damage(
                "bytes of the token beside",
                "words[0] >> (at.slot % 2 * 16)",
                "words[0] >> (16 - at.slot % 2 * 16)",
            ),
            damage("bytes: the tail beside", "(STRIP / 4), at.slot)", "(STRIP / 4), at.slot ^ 1)"),
            damage("windows without a zero", " + step * first_of(window, last_code)", ""),
            damage("channels: the scale beside", "at.block[channel]", "at.block[channel ^ 1]"),
            damage("channels: codes cut at words", "packed |= words[1] << (32 - shift);", ""),
        ],
    );
}

#[test]
fn wrong_score_groups_is_seen() {
    let damage = |what, from, to| damage("score_groups", what, from, to);
    all_seen(
        sites(),
        key_scores::score_groups_on,
        &[
            damage("a swapped head", "scores[(first_qo + h)", "scores[(first_qo + heads - 1 - h)"),
            damage("a token off by one", "8 * index *", "8 * (max(index, 1u) - 1) *"),
            damage("a skipped barrier", "__syncthreads();\n            if", "if"),
            damage(
                "tables of the groups before",
                "tile[at] = head",
                "if (first == 0) tile[at] = head",
            ),
            damage("heads beyond the tile", "h - lead < tile_heads", "h < tile_heads"),
            damage("codes cut at words", "packed |= words[1] << (32 - shift);", ""),
        ],
    );
}

#[test]
fn wrong_frame_queries_is_seen() {
    let damage = |what, from, to| damage("frame_queries", what, from, to);
    all_seen(
        sites(),
        tables::frame_queries_on,
        &[
            damage(
                "a swapped head",
                "+ blockIdx.x % params.group_size) *",
                "+ params.group_size - 1 - blockIdx.x % params.group_size) *",
            ),
            damage("KV heads as they lie", "kv_heads[head]", "head"),
            damage("channels as they lie", "q[query + channel.order]", "q[query + i]"),
            damage(
                "queries of another head",
                "tables[blockIdx.x * params.head_dim + i] = x[i]",
                "tables[(gridDim.x - 1 - blockIdx.x) * params.head_dim + i] = x[i]",
            ),
            damage(
                "a skipped barrier",
                "x[low + half] = a - b;\n        }\n        __syncthreads();",
                "x[low + half] = a - b;\n        }\n",
            ),
            damage("a place in the code forgotten", "& mask) << shift", "& mask)"),
        ],
    );
}

#[test]
fn wrong_group_tables_is_seen() {
    let damage = |what, from, to| damage("group_tables", what, from, to);
    all_seen(
        sites(),
        groups::group_tables_on,
        &[
            damage(
                "a swapped head",
                "+ blockIdx.y % params.group_size) *",
                "+ params.group_size - 1 - blockIdx.y % params.group_size) *",
            ),
            damage("KV heads as they lie", "kv_heads[head]", "head"),
            damage("channels as they lie", "query[frame[i].order]", "query[i]"),
            damage("a rotation that is not turned", "columns[j * params.head_dim]", "columns[j]"),
            damage(
                "a skipped barrier",
                "x[index] = coordinate;\n    }\n    __syncthreads();",
                "x[index] = coordinate;\n    }\n",
            ),
            damage("the codebook of the first head", "(head * num_groups +", "(0 * num_groups +"),
            damage(
                "a group off by one",
                "const unsigned own = at /",
                "const unsigned own = (at + params.num_centroids / 2) /",
            ),
        ],
    );
}

#[test]
fn wrong_store_rows_is_seen() {
    let damage = |what, from, to| damage("store_rows", what, from, to);
    all_seen(
        sites(),
        tables::store_rows_on,
        &[
            damage(
                "a swapped head",
                "+ slot.kv_head) *",
                "+ params.num_kv_heads - 1 - slot.kv_head) *",
            ),
            damage("a token off by one", "(slot.token *", "((max(slot.token, 1u) - 1) *"),
            damage(
                "rows of one dimension",
                "= blockIdx.x + blockIdx.y * gridDim.x",
                "= blockIdx.x + blockIdx.y",
            ),
            damage("values over keys", "slot.place + to_value + i", "slot.place + i"),
            damage("rounded towards zero", "size + 0xfff + (size >> 13 & 1)", "size"),
        ],
    );
}

#[test]
fn wrong_query_energy_is_seen() {
    let damage = |what, from, to| damage("query_energy", what, from, to);
    all_seen(
        sites(),
        tables::query_energy_on,
        &[
            damage(
                "a swapped head",
                "blockIdx.y * params.group_size + g;",
                "(params.num_kv_heads - 1 - blockIdx.y) * params.group_size + g;",
            ),
            damage("a token off by one", "blockIdx.x * STRETCH;", "blockIdx.x * STRETCH + 1;"),
            damage(
                "a stretch that goes on",
                "min(params.tokens, first + STRETCH)",
                "params.tokens",
            ),
        ],
    );
}
