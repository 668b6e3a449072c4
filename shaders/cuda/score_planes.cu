// Scores of coded keys that lie in nibble planes, by tables of each query.
//
//   score[h, t] = scale[t] * (offset[h] + sum over planes p of table[h, p, nibble[p, t]]) + zero[t] * sum[h] + bias[h]
//
// A strip of 32 tokens has its planes one after the other, 16 bytes each with a nibble of every token, and behind them
// the tails of its tokens: nothing, a scale, a scale and a zero in f16, or a byte e that means a scale of
// 2^((e - 128) / 8). The nibble of the token in slot s is in byte s % 8 * 2 + s / 8 % 2 of a plane, in the upper half for
// s >= 16. What a nibble stands for is the tables' to say, so that one kernel scores integers per token, Lloyd-Max
// codes, bits allocated over channels, and product quantization of 16 centroids.
//
// Grid: a block a span, blockIdx.x, and HEADS query heads of its group, blockIdx.y; a thread a token. The
// tables of TILE planes at a time are in shared memory.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | spans | [num_spans] Span | read |
// | 2 | codes | strips, as words | read |
// | 3 | tables | [num_qo_heads, num_planes, 16] f32 | read |
// | 4 | finals | [num_qo_heads] offset, sum, bias and 0, f32 | read |
// | 5 | scores | [num_qo_heads, score_stride] f32: token t of a span at first_token + t of each head's row | write |
//
// A span is of at most GROUP tokens that begin with a strip. A span of no tokens writes nothing.
// Accuracy: sums of TILE planes in the arithmetic of a `terms_` part, in the order of the planes, then sums of these in
// f32. In f16, for scores that only select, a sum is off by at most
//
//   16 * 2^-11 / (1 - 16 * 2^-11) * sum over planes p of |table[h, p, nibble[p, t]]| + num_planes * 2^-14
//
// beside what f32 does: each term is rounded once and added at most fifteen times, and a device may take what is below
// 2^-14 for 0. Entries are held at +-65504; a sum of TILE planes beyond that is not a number or infinite.
// Source: HCAttention, arXiv 2507.19823, section 3.2, for tables of product quantization; docs/methods/hca.md for the rest.

#include "parts/half.cuh"
#include "parts/tails.cuh"

constexpr unsigned GROUP = 128;
constexpr unsigned HEADS = 8;
constexpr unsigned TILE = 16;
constexpr unsigned PLANE_WORDS = 4;

struct Params {
    unsigned group_size;
    unsigned num_planes;
    unsigned strip_words;
    unsigned tail;
    unsigned score_stride;
};

struct Span {
    unsigned kv_head;
    // Of its first strip, in words.
    unsigned place;
    unsigned num_tokens;
    // The place of its first token in the rows of scores.
    unsigned first_token;
};

extern "C" __global__ void __launch_bounds__(GROUP)
score_planes(Params params, const Span* __restrict__ spans, const unsigned* __restrict__ codes,
             const float* __restrict__ tables, const float4* __restrict__ finals, float* __restrict__ scores)
{
    // [TILE, 16, HEADS]: the heads of an entry lie side by side.
    __shared__ float tile[TILE * 16 * HEADS];
    const unsigned index = threadIdx.x;
    const Span span = spans[blockIdx.x];
    const unsigned first_head = blockIdx.y * HEADS;
    const unsigned heads = min(HEADS, params.group_size - first_head);
    const unsigned first_qo = span.kv_head * params.group_size + first_head;
    const bool is_inside = index < span.num_tokens;
    const unsigned slot = index % STRIP;
    const unsigned* strip = codes + span.place + index / STRIP * params.strip_words;
    const unsigned word = slot % 8 / 2;
    const unsigned shift = slot % 2 * 16 + slot / 8 % 2 * 8 + slot / 16 * 4;
    float sums[HEADS] = {};
    for (unsigned first = 0; first < params.num_planes; first += TILE) {
        const unsigned count = min(TILE, params.num_planes - first);
        for (unsigned at = index; at < count * 16 * HEADS; at += GROUP) {
            const unsigned head = at % HEADS;
            const unsigned entry = at / HEADS;
            const unsigned row = (first_qo + head) * params.num_planes + first;
            tile[at] = head < heads ? tables[row * 16 + entry] : 0.0f;
        }
        __syncthreads();
        if (is_inside) {
            // Terms are f32 here.
            float of_tile[HEADS] = {};
            for (unsigned p = 0; p < count; p++) {
                const unsigned nibble = (strip[(first + p) * PLANE_WORDS + word] >> shift) & 15;
                const unsigned entry = (p * 16 + nibble) * HEADS;
                for (unsigned h = 0; h < HEADS; h++) {
                    of_tile[h] += tile[entry + h];
                }
            }
            for (unsigned h = 0; h < HEADS; h++) {
                sums[h] += of_tile[h];
            }
        }
        __syncthreads();
    }
    if (is_inside) {
        const float2 tail = tail_of(params.tail, strip + params.num_planes * PLANE_WORDS, slot);
        for (unsigned h = 0; h < heads; h++) {
            const float4 last = finals[first_qo + h];
            const unsigned at = (first_qo + h) * params.score_stride + span.first_token + index;
            scores[at] = tail.x * (sums[h] + last.x) + tail.y * last.y + last.z;
        }
    }
}
