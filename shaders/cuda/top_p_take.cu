// The tokens that a KV head's group takes: the union of what its query heads take, in the order of positions.
//
// A head takes the tokens of larger keys than its last one, and of those of the same key the first `ties`. In the first
// pass (writes = 0) the tokens of each chunk are counted; in the second, when the counts have become the sums before
// each, they are written.
//
// Grid: a block a chunk of CHUNK tokens, blockIdx.x, and a KV head, blockIdx.y; a thread has OWN tokens that
// follow each other.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | choices | [num_qo_heads] Choice | read |
// | 4 | ties_before | [num_qo_heads, num_chunks] u32, the ties of the chunks before each | read |
// | 5 | counts | [num_kv_heads, num_chunks] u32; in the second pass, tokens taken of the chunks before each | read, write |
// | 6 | positions | [num_kv_heads, capacity] u32, rising | write |
// | 7 | taken_scores | [num_qo_heads, capacity] f32; minus infinity where a head does not take a token | write |
//
// Heads of a group have as many tokens as each other. Requires a group_size of at most 32. What is beyond the capacity
// is not written. A head of no tokens takes none.
// Accuracy: exact, but for keys, see `top_p_find`.

#include "parts/infinity.cuh"
#include "parts/warp.cuh"
#include "parts/choice.cuh"
#include "parts/scan.cuh"

struct Params {
    unsigned group_size;
    unsigned num_chunks;
    unsigned capacity;
    // Whether every head of the group takes the union.
    unsigned is_shared;
    unsigned writes;
};

extern "C" __global__ void __launch_bounds__(GROUP)
top_p_take(Params params, const ScoreRow* __restrict__ rows, const float* __restrict__ scores,
           const Choice* __restrict__ choices, const unsigned* __restrict__ ties_before,
           unsigned* __restrict__ counts, unsigned* __restrict__ positions, float* __restrict__ taken_scores)
{
    const unsigned kv_head = blockIdx.y;
    const unsigned first_head = kv_head * params.group_size;
    const unsigned num_tokens = rows[first_head].num_tokens;
    const unsigned first = blockIdx.x * CHUNK + threadIdx.x * OWN;
    const unsigned end = min(num_tokens, first + OWN);
    // A bit for each head that takes the token.
    unsigned takers[OWN] = {};
    for (unsigned g = 0; g < params.group_size; g++) {
        const unsigned head = first_head + g;
        const unsigned start = rows[head].start;
        const Choice choice = choices[head];
        unsigned own_ties = 0;
        for (unsigned t = first; t < end; t++) {
            own_ties += key_of(scores[start + t], choice.lse) == choice.key;
        }
        unsigned rank = ties_before[head * params.num_chunks + blockIdx.x] + group_before(own_ties).before;
        for (unsigned t = first; t < end; t++) {
            const unsigned key = key_of(scores[start + t], choice.lse);
            const bool is_tie = key == choice.key;
            if (key > choice.key || (is_tie && rank < choice.ties)) {
                takers[t - first] |= 1u << g;
            }
            rank += is_tie;
        }
    }
    unsigned own = 0;
    for (unsigned i = 0; i < OWN; i++) {
        own += takers[i] != 0;
    }
    const Sums sums = group_before(own);
    const unsigned of_chunk = kv_head * params.num_chunks + blockIdx.x;
    if (params.writes == 0) {
        if (threadIdx.x == 0) {
            counts[of_chunk] = sums.all;
        }
        return;
    }
    unsigned at = counts[of_chunk] + sums.before;
    for (unsigned t = first; t < end; t++) {
        const unsigned taker = takers[t - first];
        if (taker != 0) {
            if (at < params.capacity) {
                positions[kv_head * params.capacity + at] = t;
                for (unsigned g = 0; g < params.group_size; g++) {
                    const unsigned head = first_head + g;
                    const bool takes = params.is_shared != 0 || (taker >> g & 1) != 0;
                    const float score = scores[rows[head].start + t];
                    taken_scores[head * params.capacity + at] = takes ? score : minus_infinity();
                }
            }
            at++;
        }
    }
}
