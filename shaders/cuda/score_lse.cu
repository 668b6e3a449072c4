// Log-sum-exp of the scores of each chunk of a row.
//
//   parts[h, n] = ln sum over the tokens t of chunk n of exp(scores[h, t])
//
// Grid: a block a chunk of CHUNK tokens, blockIdx.x, and a query head, blockIdx.y.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | parts | [num_qo_heads, num_chunks] f32, natural logarithm | write |
//
// A chunk of no tokens gives minus infinity.
// Accuracy: f32; the largest score is taken out first.

#include "parts/infinity.cuh"
#include "parts/warp.cuh"
#include "parts/choice.cuh"
#include "parts/reduce.cuh"

struct Params {
    unsigned num_chunks;
};

extern "C" __global__ void __launch_bounds__(GROUP)
score_lse(Params params, const ScoreRow* __restrict__ rows, const float* __restrict__ scores,
          float* __restrict__ parts)
{
    const ScoreRow row = rows[blockIdx.y];
    const unsigned end = min(row.num_tokens, (blockIdx.x + 1) * CHUNK);
    const unsigned first = blockIdx.x * CHUNK + threadIdx.x;
    float own_largest = minus_infinity();
    for (unsigned t = first; t < end; t += GROUP) {
        own_largest = fmaxf(own_largest, scores[row.start + t]);
    }
    const float largest = group_max(own_largest);
    const bool is_empty = largest == minus_infinity();
    // Of an empty chunk every difference would be NaN.
    const float shift = is_empty ? 0.0f : largest;
    float own_total = 0.0f;
    for (unsigned t = first; t < end; t += GROUP) {
        own_total += expf(scores[row.start + t] - shift);
    }
    const float total = group_sum(own_total);
    if (threadIdx.x == 0) {
        parts[blockIdx.y * params.num_chunks + blockIdx.x] = is_empty ? largest : shift + logf(total);
    }
}
