// Queries in the frame of a key format, which codes channel by channel are met by; where codes lie in nibble planes, the
// tables by which these are scored.
//
//   x[h, i] = sm_scale * scale[i] * q[h, order[i]], transformed by a Walsh-Hadamard matrix in blocks where there is one
//   table[h, p, n] = sum over the channels i of plane p of x[h, i] * value(part of nibble n that is i's)
//   offset[h] = sum over i of x[h, i] * offset[i],   sum[h] = sum over i of x[h, i],
//   bias[h] = sm_scale * sum over c of q[h, c] * centre[c]
//
// A plane holds 4 / bits neighbouring channels from `first` on, the first in the lowest bits. A part of a nibble, shifted
// to its place in its channel's code, stands for itself, or for an entry of a codebook. Without planes, x itself is what is
// written.
//
// Grid: a block a query head of the set, blockIdx.x.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | kv_heads | [num_heads] u32, which KV heads of the layer the set has | read |
// | 2 | channels | [num_heads, head_dim] Channel | read |
// | 3 | planes | [num_heads, num_planes] u32: first + bits << 16 + shift << 24; a word where there are none | read |
// | 4 | levels | [16] f32, the codebook | read |
// | 5 | q | [num_qo_heads, head_dim] f32, post-RoPE | read |
// | 6 | tables | [num_heads, group_size, num_planes, 16] f32; [num_heads, group_size, head_dim] without planes | write |
// | 7 | finals | [num_heads, group_size] offset, sum, bias and 0, f32 | write |
//
// Requires a head_dim of at most 256. No heads: no blocks.
// Accuracy: f32.
// Source: docs/methods/hca.md; Ashkboos et al. 2024, arXiv 2404.00456, for the transform.

#include "parts/warp.cuh"

constexpr unsigned GROUP = 64;
constexpr unsigned MAX_HEAD_DIM = 256;

#include "parts/reduce.cuh"

struct Params {
    unsigned head_dim;
    unsigned group_size;
    unsigned num_planes;
    // Channels of a block of the transform; 1 where there is none.
    unsigned block;
    unsigned has_levels;
    float sm_scale;
};

struct Channel {
    unsigned order;
    float scale;
    // Of the channel before it was put in order.
    float centre;
    float offset;
};

extern "C" __global__ void __launch_bounds__(GROUP)
frame_queries(Params params, const unsigned* __restrict__ kv_heads, const Channel* __restrict__ channels,
               const unsigned* __restrict__ planes, const float* __restrict__ levels, const float* __restrict__ q,
               float* __restrict__ tables, float4* __restrict__ finals)
{
    __shared__ float x[MAX_HEAD_DIM];
    const unsigned index = threadIdx.x;
    const unsigned head = blockIdx.x / params.group_size;
    const unsigned query = (kv_heads[head] * params.group_size + blockIdx.x % params.group_size) * params.head_dim;
    float own_bias = 0.0f;
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        const Channel channel = channels[head * params.head_dim + i];
        x[i] = params.sm_scale * q[query + channel.order] * channel.scale;
        own_bias += params.sm_scale * q[query + i] * channel.centre;
    }
    __syncthreads();
    for (unsigned half = 1; half < params.block; half *= 2) {
        for (unsigned pair = index; pair < params.head_dim / 2; pair += GROUP) {
            const unsigned low = pair / half * 2 * half + pair % half;
            const float a = x[low];
            const float b = x[low + half];
            x[low] = a + b;
            x[low + half] = a - b;
        }
        __syncthreads();
    }
    float own_offset = 0.0f;
    float own_sum = 0.0f;
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        own_offset += x[i] * channels[head * params.head_dim + i].offset;
        own_sum += x[i];
    }
    const float offset = group_sum(own_offset);
    const float sum = group_sum(own_sum);
    const float bias = group_sum(own_bias);
    if (index == 0) {
        finals[blockIdx.x] = make_float4(offset, sum, bias, 0.0f);
    }
    if (params.num_planes == 0) {
        for (unsigned i = index; i < params.head_dim; i += GROUP) {
            tables[blockIdx.x * params.head_dim + i] = x[i];
        }
    }
    for (unsigned at = index; at < params.num_planes * 16; at += GROUP) {
        const unsigned plane = planes[head * params.num_planes + at / 16];
        const unsigned nibble = at % 16;
        const unsigned first = plane & 0xffff;
        const unsigned bits = plane >> 16 & 0xff;
        const unsigned shift = plane >> 24;
        const unsigned mask = (1u << bits) - 1;
        float product = 0.0f;
        for (unsigned i = 0; i < 4 / bits; i++) {
            const unsigned code = (nibble >> (i * bits) & mask) << shift;
            product += x[first + i] * (params.has_levels != 0 ? levels[code] : (float)code);
        }
        tables[blockIdx.x * params.num_planes * 16 + at] = product;
    }
}
