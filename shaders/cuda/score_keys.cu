// Scores of keys whose codes lie channel by channel, by queries in their frame.
//
//   score[h, t] = scale[t] * (offset[h] + sum over channels c of q[h, c] * value[t, c]) + zero[t] * sum[h] + bias[h]
//
// What a code stands for, and the scale and zero of a token, are a `keys_` part's: rows of f16, bytes with a scale and zero
// for each token, or integers with a scale and zero for each channel of a block.
//
// Grid: a block a span, blockIdx.x, and HEADS query heads of its group, blockIdx.y; a thread a token. The
// queries' TILE channels at a time are in shared memory.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | spans | [num_spans] Span | read |
// | 2 | codes | blocks, as words | read |
// | 3 | queries | [num_qo_heads, head_dim] f32 | read |
// | 4 | finals | [num_qo_heads] offset, sum, bias and 0, f32 | read |
// | 5 | scores | [num_qo_heads, score_stride] f32: token t of a span at first_token + t of each head's row | write |
//
// A span is of at most GROUP tokens that begin with a block. A span of no tokens writes nothing. Requires a head_dim in
// fours.
// Accuracy: f32 sums in the order of the channels, four at a time.
// Source: KIVI, arXiv 2402.02750, for scales by channel; docs/methods/hca.md for the rest.

#include "parts/half.cuh"

constexpr unsigned GROUP = 128;
constexpr unsigned HEADS = 8;
constexpr unsigned TILE = 64;
constexpr unsigned FOURS = TILE / 4;

struct Params {
    unsigned group_size;
    unsigned head_dim;
    unsigned block_words;
    unsigned score_stride;
    // As `tails` and `keys_channels` have them.
    unsigned tail;
    unsigned bits;
    unsigned group_tokens;
};

struct Span {
    unsigned kv_head;
    // Of its first block, in words.
    unsigned place;
    unsigned num_tokens;
    unsigned first_token;
};

// The `keys_` part of the variant, and what it stands on.
#include KEYS

extern "C" __global__ void __launch_bounds__(GROUP)
score_keys(Params params, const Span* __restrict__ spans, const unsigned* __restrict__ codes,
           const float4* __restrict__ queries, const float4* __restrict__ finals, float* __restrict__ scores)
{
    // [FOURS, HEADS]: the heads of four channels lie side by side.
    __shared__ float4 tile[FOURS * HEADS];
    const unsigned index = threadIdx.x;
    const Span span = spans[blockIdx.x];
    const unsigned first_head = blockIdx.y * HEADS;
    const unsigned heads = min(HEADS, params.group_size - first_head);
    const unsigned first_qo = span.kv_head * params.group_size + first_head;
    const bool is_inside = index < span.num_tokens;
    const KeyPlace at = place_of(params, codes + span.place, index);
    const unsigned fours = params.head_dim / 4;
    float sums[HEADS] = {};
    for (unsigned first = 0; first < fours; first += FOURS) {
        const unsigned count = min(FOURS, fours - first);
        for (unsigned i = index; i < count * HEADS; i += GROUP) {
            const unsigned head = i % HEADS;
            tile[i] = head < heads ? queries[(first_qo + head) * fours + first + i / HEADS]
                                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        __syncthreads();
        if (is_inside) {
            for (unsigned i = 0; i < count; i++) {
                const float4 key = values_of(params, at, 4 * (first + i));
                for (unsigned h = 0; h < HEADS; h++) {
                    const float4 query = tile[i * HEADS + h];
                    sums[h] += query.x * key.x + query.y * key.y + query.z * key.z + query.w * key.w;
                }
            }
        }
        __syncthreads();
    }
    if (is_inside) {
        const float2 tail = tail_at(params, at);
        for (unsigned h = 0; h < heads; h++) {
            const float4 last = finals[first_qo + h];
            const unsigned score_at = (first_qo + h) * params.score_stride + span.first_token + index;
            scores[score_at] = tail.x * (sums[h] + last.x) + tail.y * last.y + last.z;
        }
    }
}
