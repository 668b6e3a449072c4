// Exact causal attention of a block of a prompt over a segment of the keys up to it.
//
//   s[i, j] = sm_scale * sum over c of q[i, h, c] * k[j, kv, c]   for j < before + i + 1, else minus infinity
//   lse[i, h] = ln sum over j of exp(s[i, j]),   out[i, h, c] = sum over j of exp(s[i, j] - lse[i, h]) * v[j, kv, c]
//
// with kv the KV head of query head h, and `before` the keys of the segment that lie before the first query. Where `adds`
// is not 0 the state is merged with what `out` and `lse` hold, which is of earlier segments. The running softmax of flash attention over tiles of KEYS keys; scores of a tile
// are summed over chunks of 32 channels, and the values are read where they lie.
//
// Grid: a block QUERIES queries, blockIdx.x, of one query head, blockIdx.y.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | q | [qo_len, num_qo_heads, head_dim] f32, as groups of four | read |
// | 2 | k | [kv_len, num_kv_heads, head_dim] f32, as groups of four | read |
// | 3 | v | [kv_len, num_kv_heads, head_dim] f32, as groups of four | read |
// | 4 | out | [qo_len, num_qo_heads, head_dim] f32, as groups of four | read, write |
// | 5 | lse | [qo_len, num_qo_heads] f32, natural logarithm | read, write |
//
// Requires a head_dim of whole fours, at most 256, and that every query sees a key of the segment. No queries: no
// blocks. Finite inputs; a score beyond f32 gives NaN.
// Accuracy: f32.
// Source: Dao 2023, arXiv 2307.08691, algorithm 1.

#include "parts/warp.cuh"

constexpr unsigned QUERIES = 16;
constexpr unsigned KEYS = 32;
constexpr unsigned GROUP = 64;
// Groups of four channels: of a chunk, and the most that a thread has of a query in the second product.
constexpr unsigned CHUNK = 8;
constexpr unsigned MAX_FOURS = 4;
// In the first product a thread has 2 queries and 4 keys, in the second 4 queries and every 16th group of channels; of
// the softmax between them it has every 4th key of one query.
constexpr unsigned SCORE_LANES = 8;
constexpr unsigned VALUE_LANES = 16;
constexpr unsigned ROW_LANES = GROUP / QUERIES;
constexpr float LEAST = -3.4028235e38f;

struct Params {
    unsigned qo_len;
    unsigned kv_len;
    unsigned before;
    unsigned adds;
    unsigned num_qo_heads;
    unsigned num_kv_heads;
    unsigned fours;
    float sm_scale;
};

static __device__ float dot(float4 a, float4 b)
{
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

static __device__ float4 scaled(float s, float4 a)
{
    return make_float4(s * a.x, s * a.y, s * a.z, s * a.w);
}

static __device__ float4 plus_scaled(float4 sum, float s, float4 a)
{
    return make_float4(sum.x + s * a.x, sum.y + s * a.y, sum.z + s * a.z, sum.w + s * a.w);
}

// The lse of two disjoint sets of keys.
static __device__ float merged(float a, float b)
{
    const float most = fmaxf(a, b);
    return most + logf(expf(a - most) + expf(b - most));
}

extern "C" __global__ void __launch_bounds__(GROUP)
prefill(Params params, const float4* __restrict__ q, const float4* __restrict__ k, const float4* __restrict__ v,
        float4* __restrict__ out, float* __restrict__ lse)
{
    __shared__ float4 q_chunk[QUERIES * CHUNK];
    __shared__ float4 k_chunk[KEYS * CHUNK];
    // Scores, then the weights that they become: [QUERIES, KEYS].
    __shared__ float weights[QUERIES * KEYS];
    __shared__ float row_largest[QUERIES];
    __shared__ float row_total[QUERIES];
    // What the sums so far are multiplied with.
    __shared__ float row_keep[QUERIES];
    const unsigned index = threadIdx.x;
    const unsigned head = blockIdx.y;
    const unsigned kv_head = head / (params.num_qo_heads / params.num_kv_heads);
    const unsigned first_query = blockIdx.x * QUERIES;
    const unsigned num_queries = min(QUERIES, params.qo_len - first_query);
    // Keys that the first query of the tile sees beyond itself, and all that the tile sees.
    const unsigned before = params.before + first_query;
    const unsigned num_keys = min(params.kv_len, before + num_queries);
    if (index < QUERIES) {
        row_largest[index] = LEAST;
        row_total[index] = 0.0f;
    }
    const unsigned own_queries = index / SCORE_LANES * 2;
    const unsigned own_keys = index % SCORE_LANES * 4;
    const unsigned own_row = index / ROW_LANES;
    const unsigned row_lane = index % ROW_LANES;
    const unsigned value_queries = index / VALUE_LANES * 4;
    const unsigned value_lane = index % VALUE_LANES;
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 sums[4][MAX_FOURS];
    for (unsigned n = 0; n < 4; n++) {
        for (unsigned f = 0; f < MAX_FOURS; f++) {
            sums[n][f] = zero;
        }
    }
    for (unsigned first_key = 0; first_key < num_keys; first_key += KEYS) {
        const unsigned count = min(KEYS, num_keys - first_key);
        float scores[2][4] = {};
        for (unsigned first_four = 0; first_four < params.fours; first_four += CHUNK) {
            for (unsigned at = index; at < QUERIES * CHUNK; at += GROUP) {
                const unsigned query = first_query + at / CHUNK;
                const unsigned four = first_four + at % CHUNK;
                const bool is_inside = query < params.qo_len && four < params.fours;
                q_chunk[at] = is_inside ? q[(query * params.num_qo_heads + head) * params.fours + four] : zero;
            }
            for (unsigned at = index; at < KEYS * CHUNK; at += GROUP) {
                const unsigned key = first_key + at / CHUNK;
                const unsigned four = first_four + at % CHUNK;
                const bool is_inside = key < num_keys && four < params.fours;
                k_chunk[at] = is_inside ? k[(key * params.num_kv_heads + kv_head) * params.fours + four] : zero;
            }
            __syncthreads();
            for (unsigned i = 0; i < CHUNK; i++) {
                for (unsigned n = 0; n < 2; n++) {
                    const float4 query = q_chunk[(own_queries + n) * CHUNK + i];
                    for (unsigned j = 0; j < 4; j++) {
                        scores[n][j] += dot(query, k_chunk[(own_keys + j) * CHUNK + i]);
                    }
                }
            }
            __syncthreads();
        }
        for (unsigned n = 0; n < 2; n++) {
            for (unsigned j = 0; j < 4; j++) {
                weights[(own_queries + n) * KEYS + own_keys + j] = params.sm_scale * scores[n][j];
            }
        }
        __syncthreads();
        // Keys of this tile that the row's query sees; none where the tile is all behind it.
        const int sees = (int)(before + own_row + 1) - (int)first_key;
        const unsigned seen = min((unsigned)max(sees, 0), count);
        const float old_largest = row_largest[own_row];
        float largest = old_largest;
        for (unsigned j = row_lane; j < seen; j += ROW_LANES) {
            largest = fmaxf(largest, weights[own_row * KEYS + j]);
        }
        for (unsigned step = 1; step < ROW_LANES; step *= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        }
        float total = 0.0f;
        for (unsigned j = row_lane; j < KEYS; j += ROW_LANES) {
            const float weight = j < seen ? expf(weights[own_row * KEYS + j] - largest) : 0.0f;
            weights[own_row * KEYS + j] = weight;
            total += weight;
        }
        for (unsigned step = 1; step < ROW_LANES; step *= 2) {
            total += __shfl_xor_sync(ALL_LANES, total, step);
        }
        // Every lane of the row has read its largest score so far.
        __syncwarp(ALL_LANES);
        if (row_lane == 0) {
            const float keep = expf(old_largest - largest);
            row_largest[own_row] = largest;
            row_total[own_row] = row_total[own_row] * keep + total;
            row_keep[own_row] = keep;
        }
        __syncthreads();
        for (unsigned f = 0; f < MAX_FOURS; f++) {
            const unsigned four = f * VALUE_LANES + value_lane;
            if (four < params.fours) {
                for (unsigned n = 0; n < 4; n++) {
                    sums[n][f] = scaled(row_keep[value_queries + n], sums[n][f]);
                }
                for (unsigned j = 0; j < count; j++) {
                    const float4 value = v[((first_key + j) * params.num_kv_heads + kv_head) * params.fours + four];
                    for (unsigned n = 0; n < 4; n++) {
                        sums[n][f] = plus_scaled(sums[n][f], weights[(value_queries + n) * KEYS + j], value);
                    }
                }
            }
        }
        // The next tile has barriers before it overwrites the weights.
    }
    for (unsigned n = 0; n < 4; n++) {
        const unsigned query = value_queries + n;
        if (query < num_queries) {
            const unsigned row = (first_query + query) * params.num_qo_heads + head;
            const float own = row_largest[query] + logf(row_total[query]);
            float total = own;
            float keep = 0.0f;
            if (params.adds != 0) {
                const float earlier = lse[row];
                total = merged(own, earlier);
                keep = expf(earlier - total);
            }
            const float share = expf(own - total) / row_total[query];
            for (unsigned f = 0; f < MAX_FOURS; f++) {
                const unsigned four = f * VALUE_LANES + value_lane;
                if (four < params.fours) {
                    float4 value = scaled(share, sums[n][f]);
                    if (params.adds != 0) {
                        value = plus_scaled(value, keep, out[row * params.fours + four]);
                    }
                    out[row * params.fours + four] = value;
                }
            }
        }
    }
    // Every thread has read the earlier lse.
    __syncthreads();
    if (index < num_queries) {
        const unsigned row = (first_query + index) * params.num_qo_heads + head;
        const float own = row_largest[index] + logf(row_total[index]);
        lse[row] = params.adds != 0 ? merged(own, lse[row]) : own;
    }
}
