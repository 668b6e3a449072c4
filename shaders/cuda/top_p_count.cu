// A histogram of the keys of a head's tokens, of those that have the bits found so far: how many have which next bits,
// and what is below these.
//
//   bin(t) = (key(t) >> shift) & 1023   for tokens with key(t) >> (shift + 10) == key >> (shift + 10)
//   counts[h, bin] += 1,   rests[h, bin] += (key(t) mod 2^shift) >> rest_shift
//
// From counts and rests the mass of a bin follows without a sum of floats, which no atomic has: all its weights have one
// exponent. Levels: shift 20, 10 and 0.
//
// Grid: a block a chunk of CHUNK tokens, blockIdx.x, and a query head, blockIdx.y.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | rows | [num_qo_heads] ScoreRow | read |
// | 2 | scores | f32 | read |
// | 3 | choices | [num_qo_heads] Choice | read |
// | 4 | counts | [num_qo_heads, 1024] u32, zeros before the first chunk | read, write |
// | 5 | rests | [num_qo_heads, 1024] u32, zeros before the first chunk | read, write |
//
// A head of no tokens counts none. A weight that is NaN is in the last bin.
// Accuracy: counts are exact; at shift 20 a rest is rounded to 2^-13 of its weight's exponent. Sums fit 32 bits up to
// 2^22 tokens.

#include "parts/choice.cuh"

constexpr unsigned BINS = 1024;

struct Params {
    unsigned shift;
    unsigned rest_shift;
};

extern "C" __global__ void __launch_bounds__(GROUP)
top_p_count(Params params, const ScoreRow* __restrict__ rows, const float* __restrict__ scores,
            const Choice* __restrict__ choices, unsigned* __restrict__ counts, unsigned* __restrict__ rests)
{
    __shared__ unsigned own_counts[BINS];
    __shared__ unsigned own_rests[BINS];
    for (unsigned bin = threadIdx.x; bin < BINS; bin += GROUP) {
        own_counts[bin] = 0;
        own_rests[bin] = 0;
    }
    __syncthreads();
    const ScoreRow row = rows[blockIdx.y];
    const Choice choice = choices[blockIdx.y];
    const unsigned end = min(row.num_tokens, (blockIdx.x + 1) * CHUNK);
    if (choice.is_found == 0) {
        for (unsigned t = blockIdx.x * CHUNK + threadIdx.x; t < end; t += GROUP) {
            const unsigned key = key_of(scores[row.start + t], choice.lse);
            // The highest level has twelve bits, of which the upper two are 0 in every weight that is a number.
            const bool is_first = params.shift == 20;
            if (is_first || key >> (params.shift + 10) == choice.key >> (params.shift + 10)) {
                const unsigned bits = key >> params.shift;
                const unsigned bin = is_first ? min(bits, BINS - 1) : bits % BINS;
                const unsigned rest = (key & ((1u << params.shift) - 1)) >> params.rest_shift;
                atomicAdd(&own_counts[bin], 1u);
                atomicAdd(&own_rests[bin], rest);
            }
        }
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < BINS; bin += GROUP) {
        const unsigned count = own_counts[bin];
        if (count > 0) {
            atomicAdd(&counts[blockIdx.y * BINS + bin], count);
            atomicAdd(&rests[blockIdx.y * BINS + bin], own_rests[bin]);
        }
    }
}
