// The exact merge of attention states of disjoint sets of tokens.
//
//   lse[h] = ln sum over s of exp(lse[s, h]),   out[h] = sum over s of exp(lse[s, h] - lse[h]) * out[s, h]
//
// over the states s of the KV head of query head h, those that `ids` names from `first[kv_head]` to
// `first[kv_head + 1]`.
//
// Grid: a block a query head, blockIdx.x; threads stride over channels.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | first | [num_kv_heads + 1] u32, rising | read |
// | 2 | ids | [first[num_kv_heads]] u32, states | read |
// | 3 | outs | [num_states, group_size, head_dim] f32, normalised | read |
// | 4 | lses | [num_states, group_size] f32, natural logarithm | read |
// | 5 | out | [num_qo_heads, head_dim] f32 | write |
// | 6 | lse | [num_qo_heads] f32 | write |
//
// No states, or empty ones alone: zeros and minus infinity; an empty state changes nothing. NaN spreads.
// Accuracy: f32; the states are summed in order.
// Source: Ye et al. 2025, arXiv 2501.01005, section 2.2.

#include "parts/infinity.cuh"
#include "parts/warp.cuh"

constexpr unsigned GROUP = 64;

#include "parts/reduce.cuh"

struct Params {
    unsigned head_dim;
    unsigned group_size;
};

extern "C" __global__ void __launch_bounds__(GROUP)
merge_states(Params params, const unsigned* __restrict__ first, const unsigned* __restrict__ ids,
             const float* __restrict__ outs, const float* __restrict__ lses, float* __restrict__ out,
             float* __restrict__ lse)
{
    const unsigned kv_head = blockIdx.x / params.group_size;
    const unsigned head = blockIdx.x % params.group_size;
    const unsigned begin = first[kv_head];
    const unsigned end = first[kv_head + 1];
    float own_largest = minus_infinity();
    for (unsigned s = begin + threadIdx.x; s < end; s += GROUP) {
        own_largest = fmaxf(own_largest, lses[ids[s] * params.group_size + head]);
    }
    const float largest = group_max(own_largest);
    const bool is_empty = largest == minus_infinity();
    // Of an empty set every difference would be NaN.
    const float shift = is_empty ? 0.0f : largest;
    float own_total = 0.0f;
    for (unsigned s = begin + threadIdx.x; s < end; s += GROUP) {
        own_total += expf(lses[ids[s] * params.group_size + head] - shift);
    }
    const float total = group_sum(own_total);
    for (unsigned c = threadIdx.x; c < params.head_dim; c += GROUP) {
        float sum = 0.0f;
        for (unsigned s = begin; s < end; s++) {
            const unsigned state = ids[s] * params.group_size + head;
            sum += expf(lses[state] - shift) * outs[state * params.head_dim + c];
        }
        out[blockIdx.x * params.head_dim + c] = is_empty ? 0.0f : sum / total;
    }
    if (threadIdx.x == 0) {
        lse[blockIdx.x] = is_empty ? largest : shift + logf(total);
    }
}
