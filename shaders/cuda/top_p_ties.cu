// How many tokens of each chunk have the very key of a head's last token.
//
//   ties[h, n] = number of tokens t of chunk n with key(t) = key[h]
//
// Grid: a block a chunk of CHUNK tokens, blockIdx.x, and a query head, blockIdx.y.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | choices | [num_qo_heads] Choice | read |
// | 4 | ties | [num_qo_heads, num_chunks] u32 | write |
//
// A chunk of no tokens has 0.
// Accuracy: exact.

#include "parts/warp.cuh"
#include "parts/choice.cuh"
#include "parts/scan.cuh"

struct Params {
    unsigned num_chunks;
};

extern "C" __global__ void __launch_bounds__(GROUP)
top_p_ties(Params params, const ScoreRow* __restrict__ rows, const float* __restrict__ scores,
           const Choice* __restrict__ choices, unsigned* __restrict__ ties)
{
    const ScoreRow row = rows[blockIdx.y];
    const Choice choice = choices[blockIdx.y];
    const unsigned end = min(row.num_tokens, (blockIdx.x + 1) * CHUNK);
    unsigned own = 0;
    for (unsigned t = blockIdx.x * CHUNK + threadIdx.x; t < end; t += GROUP) {
        own += key_of(scores[row.start + t], choice.lse) == choice.key;
    }
    const Sums sums = group_before(own);
    if (threadIdx.x == 0) {
        ties[blockIdx.y * params.num_chunks + blockIdx.x] = sums.all;
    }
}
