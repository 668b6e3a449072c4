// Exact causal attention of a block of a prompt over a segment of the keys up to it.
//
//   s[i, j] = sm_scale * sum over c of q[i, h, c] * k[j, kv, c]   for j < before + i + 1, else minus infinity
//   lse[i, h] = ln sum over j of exp(s[i, j]),   out[i, h, c] = sum over j of exp(s[i, j] - lse[i, h]) * v[j, kv, c]
//
// with kv the KV head of query head h, and `before` the keys of the segment that lie before the first query. Where `adds`
// is not 0 the state is merged with what `out` and `lse` hold, which is of earlier segments. The running softmax of flash attention over tiles of KEYS keys; scores of a tile
// are summed over chunks of 32 channels, and the values are read where they lie.
//
// Grid: a workgroup QUERIES queries, workgroup_id.x, of one query head, workgroup_id.y.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | q | [qo_len, num_qo_heads, head_dim] f32, as groups of four | read |
// | 2 | k | [kv_len, num_kv_heads, head_dim] f32, as groups of four | read |
// | 3 | v | [kv_len, num_kv_heads, head_dim] f32, as groups of four | read |
// | 4 | out | [qo_len, num_qo_heads, head_dim] f32, as groups of four | read, write |
// | 5 | lse | [qo_len, num_qo_heads] f32, natural logarithm | read, write |
//
// Requires a head_dim of whole fours, at most 256, and that every query sees a key of the segment. No queries: no
// workgroups. Finite inputs; a score beyond f32 gives NaN.
// Accuracy: f32.
// Source: Dao 2023, arXiv 2307.08691, algorithm 1.

const QUERIES: u32 = 16u;
const KEYS: u32 = 32u;
const GROUP: u32 = 64u;
// Groups of four channels: of a chunk, and the most that a thread has of a query in the second product.
const CHUNK: u32 = 8u;
const MAX_FOURS: u32 = 4u;
// In the first product a thread has 2 queries and 4 keys, in the second 4 queries and every 16th group of channels.
const SCORE_LANES: u32 = 8u;
const VALUE_LANES: u32 = 16u;
const LEAST: f32 = -3.4028235e38;

struct Params {
    qo_len: u32,
    kv_len: u32,
    before: u32,
    adds: u32,
    num_qo_heads: u32,
    num_kv_heads: u32,
    fours: u32,
    sm_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

var<workgroup> q_chunk: array<vec4<f32>, QUERIES * CHUNK>;
var<workgroup> k_chunk: array<vec4<f32>, KEYS * CHUNK>;
// Scores, then the weights that they become: [QUERIES, KEYS].
var<workgroup> weights: array<f32, QUERIES * KEYS>;
var<workgroup> row_largest: array<f32, QUERIES>;
var<workgroup> row_total: array<f32, QUERIES>;
// What the sums so far are multiplied with.
var<workgroup> row_keep: array<f32, QUERIES>;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y;
    let kv_head = head / (params.num_qo_heads / params.num_kv_heads);
    let first_query = group.x * QUERIES;
    let num_queries = min(QUERIES, params.qo_len - first_query);
    // Keys that the first query of the tile sees beyond itself, and all that the tile sees.
    let before = params.before + first_query;
    let num_keys = min(params.kv_len, before + num_queries);
    if index < QUERIES {
        row_largest[index] = LEAST;
        row_total[index] = 0.0;
    }
    let own_queries = index / SCORE_LANES * 2u;
    let own_keys = index % SCORE_LANES * 4u;
    let value_queries = index / VALUE_LANES * 4u;
    let value_lane = index % VALUE_LANES;
    var sums: array<vec4<f32>, 4u * MAX_FOURS>;
    for (var first_key = 0u; first_key < num_keys; first_key += KEYS) {
        let count = min(KEYS, num_keys - first_key);
        var scores: array<vec4<f32>, 2>;
        for (var first_four = 0u; first_four < params.fours; first_four += CHUNK) {
            for (var at = index; at < QUERIES * CHUNK; at += GROUP) {
                let query = first_query + at / CHUNK;
                let four = first_four + at % CHUNK;
                var value = vec4(0.0);
                if query < params.qo_len && four < params.fours {
                    value = q[(query * params.num_qo_heads + head) * params.fours + four];
                }
                q_chunk[at] = value;
            }
            for (var at = index; at < KEYS * CHUNK; at += GROUP) {
                let key = first_key + at / CHUNK;
                let four = first_four + at % CHUNK;
                var value = vec4(0.0);
                if key < num_keys && four < params.fours {
                    value = k[(key * params.num_kv_heads + kv_head) * params.fours + four];
                }
                k_chunk[at] = value;
            }
            workgroupBarrier();
            for (var i = 0u; i < CHUNK; i++) {
                let k0 = k_chunk[own_keys * CHUNK + i];
                let k1 = k_chunk[(own_keys + 1u) * CHUNK + i];
                let k2 = k_chunk[(own_keys + 2u) * CHUNK + i];
                let k3 = k_chunk[(own_keys + 3u) * CHUNK + i];
                for (var n = 0u; n < 2u; n++) {
                    let query = q_chunk[(own_queries + n) * CHUNK + i];
                    scores[n] += vec4(dot(query, k0), dot(query, k1), dot(query, k2), dot(query, k3));
                }
            }
            workgroupBarrier();
        }
        for (var n = 0u; n < 2u; n++) {
            for (var j = 0u; j < 4u; j++) {
                weights[(own_queries + n) * KEYS + own_keys + j] = params.sm_scale * scores[n][j];
            }
        }
        workgroupBarrier();
        if index < QUERIES {
            // Keys of this tile that query `index` sees; none where the tile is all behind it.
            let seen = clamp(i32(before + index + 1u) - i32(first_key), 0, i32(count));
            var largest = row_largest[index];
            for (var j = 0u; j < u32(seen); j++) {
                largest = max(largest, weights[index * KEYS + j]);
            }
            let keep = exp(row_largest[index] - largest);
            var total = row_total[index] * keep;
            for (var j = 0u; j < KEYS; j++) {
                var weight = 0.0;
                if j < u32(seen) {
                    weight = exp(weights[index * KEYS + j] - largest);
                }
                weights[index * KEYS + j] = weight;
                total += weight;
            }
            row_largest[index] = largest;
            row_total[index] = total;
            row_keep[index] = keep;
        }
        workgroupBarrier();
        for (var f = 0u; f < MAX_FOURS; f++) {
            let four = f * VALUE_LANES + value_lane;
            if four < params.fours {
                for (var n = 0u; n < 4u; n++) {
                    sums[n * MAX_FOURS + f] *= row_keep[value_queries + n];
                }
                for (var j = 0u; j < count; j++) {
                    let value = v[((first_key + j) * params.num_kv_heads + kv_head) * params.fours + four];
                    for (var n = 0u; n < 4u; n++) {
                        sums[n * MAX_FOURS + f] += weights[(value_queries + n) * KEYS + j] * value;
                    }
                }
            }
        }
        // The next tile overwrites the weights.
        workgroupBarrier();
    }
    for (var n = 0u; n < 4u; n++) {
        let query = value_queries + n;
        if query < num_queries {
            let row = (first_query + query) * params.num_qo_heads + head;
            let own = row_largest[query] + log(row_total[query]);
            var total = own;
            var keep = 0.0;
            if params.adds != 0u {
                let earlier = lse[row];
                let most = max(own, earlier);
                total = most + log(exp(own - most) + exp(earlier - most));
                keep = exp(earlier - total);
            }
            let share = exp(own - total) / row_total[query];
            for (var f = 0u; f < MAX_FOURS; f++) {
                let four = f * VALUE_LANES + value_lane;
                if four < params.fours {
                    var value = sums[n * MAX_FOURS + f] * share;
                    if params.adds != 0u {
                        value += keep * out[row * params.fours + four];
                    }
                    out[row * params.fours + four] = value;
                }
            }
        }
    }
    // Every thread has read the earlier lse.
    storageBarrier();
    if index < num_queries {
        let row = (first_query + index) * params.num_qo_heads + head;
        let own = row_largest[index] + log(row_total[index]);
        var total = own;
        if params.adds != 0u {
            let most = max(own, lse[row]);
            total = most + log(exp(own - most) + exp(lse[row] - most));
        }
        lse[row] = total;
    }
}
