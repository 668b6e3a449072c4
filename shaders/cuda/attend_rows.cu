// Attention of one token's queries over exact rows on the device, in parts that each give a state.
//
//   s[t] = sm_scale * sum over c of q[h, c] * key[t, c]
//   lse = ln sum over t of exp(s[t]),   out[c] = sum over t of exp(s[t] - lse) * value[t, c]
//
// over the tokens of one part, for each query head h of the part's KV head. Where `writes_out` is 0 only the lse is worked
// out, for which no value is read.
//
// Grid: a block a part, blockIdx.x, and a query head of the group, blockIdx.y. A tile of GROUP tokens at a
// time: a thread scores a token, then sums a pair of channels over the tile; the running softmax is that of flash
// attention.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | parts | [num_parts] Part | read |
// | 2 | pages | [num_pages] places of pages in `rows`, in words | read |
// | 3 | rows | pages: keys [page_tokens, head_dim], then values of the same shape, f16, two a word | read |
// | 4 | q | [num_qo_heads, head_dim] f32, post-RoPE | read |
// | 5 | out | [num_states, group_size, head_dim] f32, normalised | write |
// | 6 | lse | [num_states, group_size] f32, natural logarithm | write |
//
// A part begins in a slot of its first page; its pages follow each other in `pages` and are full but for the last. Requires an even head_dim of at most 256.
// A part of no tokens gives zeros and minus infinity. Finite inputs; a score beyond f32 gives NaN.
// Accuracy: f32 from f16 rows.
// Source: Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2023, arXiv 2307.08691.

#include "parts/half.cuh"
#include "parts/infinity.cuh"
#include "parts/warp.cuh"

constexpr unsigned GROUP = 64;
constexpr unsigned MAX_PAIRS = 128;
constexpr unsigned PAIRS = MAX_PAIRS / GROUP;
constexpr float LEAST = -3.4028235e38f;

#include "parts/reduce.cuh"

struct Params {
    unsigned head_dim;
    unsigned group_size;
    unsigned page_tokens;
    float sm_scale;
    unsigned writes_out;
};

struct Part {
    unsigned kv_head;
    unsigned first_page;
    unsigned num_tokens;
    // Of the first page, where the part begins.
    unsigned first_slot;
    // Where its state goes.
    unsigned state;
};

extern "C" __global__ void __launch_bounds__(GROUP)
attend_rows(Params params, const Part* __restrict__ parts, const unsigned* __restrict__ pages,
            const unsigned* __restrict__ rows, const float2* __restrict__ q, float2* __restrict__ out,
            float* __restrict__ lse)
{
    __shared__ float2 query[MAX_PAIRS];
    __shared__ float weights[GROUP];
    // The word at which the key of each token of the tile begins.
    __shared__ unsigned places[GROUP];
    const unsigned index = threadIdx.x;
    const Part part = parts[blockIdx.x];
    const unsigned head = blockIdx.y;
    const unsigned pairs = params.head_dim / 2;
    for (unsigned i = index; i < pairs; i += GROUP) {
        const float2 own = q[(part.kv_head * params.group_size + head) * pairs + i];
        query[i] = make_float2(params.sm_scale * own.x, params.sm_scale * own.y);
    }
    __syncthreads();
    float largest = LEAST;
    float total = 0.0f;
    float2 sums[PAIRS] = {};
    for (unsigned first = 0; first < part.num_tokens; first += GROUP) {
        const unsigned token = first + index;
        const bool is_inside = token < part.num_tokens;
        float score = LEAST;
        if (is_inside) {
            const unsigned slot = part.first_slot + token;
            const unsigned page = pages[part.first_page + slot / params.page_tokens];
            const unsigned place = page + slot % params.page_tokens * pairs;
            float2 dots = make_float2(0.0f, 0.0f);
            for (unsigned i = 0; i < pairs; i++) {
                const float2 key = half_pair(rows[place + i]);
                dots.x += query[i].x * key.x;
                dots.y += query[i].y * key.y;
            }
            score = dots.x + dots.y;
            places[index] = place;
        }
        const float new_largest = fmaxf(largest, group_max(score));
        const float weight = is_inside ? expf(score - new_largest) : 0.0f;
        const float keep = expf(largest - new_largest);
        weights[index] = weight;
        total = total * keep + group_sum(weight);
        largest = new_largest;
        const unsigned count = min(GROUP, part.num_tokens - first);
        const unsigned to_value = params.page_tokens * pairs;
        for (unsigned p = 0; p < PAIRS; p++) {
            const unsigned pair = p * GROUP + index;
            if (pair < pairs && params.writes_out != 0) {
                float2 sum = make_float2(sums[p].x * keep, sums[p].y * keep);
                for (unsigned t = 0; t < count; t++) {
                    const float2 value = half_pair(rows[places[t] + to_value + pair]);
                    sum.x += weights[t] * value.x;
                    sum.y += weights[t] * value.y;
                }
                sums[p] = sum;
            }
        }
        // The next tile overwrites what this one reads.
        __syncthreads();
    }
    const unsigned state = part.state * params.group_size + head;
    const float share = part.num_tokens > 0 ? 1.0f / total : 0.0f;
    for (unsigned p = 0; p < PAIRS; p++) {
        const unsigned pair = p * GROUP + index;
        if (pair < pairs && params.writes_out != 0) {
            out[state * pairs + pair] = make_float2(sums[p].x * share, sums[p].y * share);
        }
    }
    if (index == 0) {
        lse[state] = part.num_tokens > 0 ? largest + logf(total) : minus_infinity();
    }
}
