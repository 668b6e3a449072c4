// The normaliser of each head over all its tokens, and the mass that its coded tokens have to hold.
//
//   lse[h] = ln (exp(resident[h]) + sum over n of exp(parts[h, n]))
//   target_mass[h] = top_p - exp(resident[h] - lse[h])
//
// Grid: a block a query head, blockIdx.x.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | resident | [num_qo_heads] f32, natural logarithm | read |
// | 2 | parts | [num_qo_heads, num_chunks] f32, natural logarithm | read |
// | 3 | choices | [num_qo_heads] Choice | write |
//
// Nothing resident is minus infinity. Of no tokens at all the lse is minus infinity.
// Accuracy: f32.
// Source: HCAttention, arXiv 2507.19823, section 3.3.

#include "parts/infinity.cuh"
#include "parts/warp.cuh"
#include "parts/choice.cuh"
#include "parts/reduce.cuh"

struct Params {
    unsigned num_chunks;
    float top_p;
};

extern "C" __global__ void __launch_bounds__(GROUP)
top_p_begin(Params params, const float* __restrict__ resident, const float* __restrict__ parts,
            Choice* __restrict__ choices)
{
    const unsigned head = blockIdx.x;
    const float of_resident = resident[head];
    float own_largest = of_resident;
    for (unsigned n = threadIdx.x; n < params.num_chunks; n += GROUP) {
        own_largest = fmaxf(own_largest, parts[head * params.num_chunks + n]);
    }
    const float largest = group_max(own_largest);
    const bool is_empty = largest == minus_infinity();
    const float shift = is_empty ? 0.0f : largest;
    float own_total = 0.0f;
    for (unsigned n = threadIdx.x; n < params.num_chunks; n += GROUP) {
        own_total += expf(parts[head * params.num_chunks + n] - shift);
    }
    const float total = group_sum(own_total) + expf(of_resident - shift);
    if (threadIdx.x == 0) {
        const float lse = is_empty ? largest : shift + logf(total);
        const float resident_mass = is_empty ? 0.0f : expf(of_resident - lse);
        choices[head] = Choice{lse, params.top_p - resident_mass, 0, 0, 0.0f, 0, 0, 0};
    }
}
