// Queries as the tables by which keys under product quantization are scored.
//
//   x[h, i] = sm_scale * scale[i] * q[h, order[i]], or sum over j of rotation[j, i] * that of j where there is one
//   table[h, g, n] = sum over the coordinates i of group g of x[h, i] * codebook[g, n, i]
//
// and a 0 for each head's offset, sum and bias, which these scores do not have.
//
// Grid: a block GROUPS groups, blockIdx.x, of a query head of the set, blockIdx.y.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | kv_heads | [num_heads] u32, which KV heads of the layer the set has | read |
// | 2 | coordinates | [num_heads, head_dim] Coordinate | read |
// | 3 | rotation | [num_heads, head_dim, head_dim] f32; a word where there is none | read |
// | 4 | codebooks | [num_heads, num_groups, num_centroids, width] f16, two a word | read |
// | 5 | q | [num_qo_heads, head_dim] f32, post-RoPE | read |
// | 6 | tables | [num_heads, group_size, num_groups, num_centroids] f32 | write |
// | 7 | finals | [num_heads, group_size] four times 0, f32 | write |
//
// Requires groups of 2, 4 or 8 coordinates. No heads: no blocks.
// Accuracy: f32 sums in the order of channels and coordinates.
// Source: HCAttention, arXiv 2507.19823, section 3.2; Ge et al., CVPR 2013, for the rotation.

#include "parts/half.cuh"

constexpr unsigned GROUP = 128;

// Groups of coordinates of a block, of at most 8 each.
constexpr unsigned GROUPS = 4;
constexpr unsigned COORDINATES = 32;

struct Params {
    unsigned head_dim;
    unsigned group_size;
    unsigned width;
    unsigned num_centroids;
    unsigned is_rotated;
    float sm_scale;
};

struct Coordinate {
    unsigned order;
    float scale;
};

extern "C" __global__ void __launch_bounds__(GROUP)
group_tables(Params params, const unsigned* __restrict__ kv_heads, const Coordinate* __restrict__ coordinates,
               const float* __restrict__ rotation, const unsigned* __restrict__ codebooks,
               const float* __restrict__ q, float* __restrict__ tables, float4* __restrict__ finals)
{
    __shared__ float x[COORDINATES];
    const unsigned index = threadIdx.x;
    const unsigned head = blockIdx.y / params.group_size;
    const float* query = q + (kv_heads[head] * params.group_size + blockIdx.y % params.group_size) * params.head_dim;
    const Coordinate* frame = coordinates + head * params.head_dim;
    const unsigned first_group = blockIdx.x * GROUPS;
    const unsigned num_groups = params.head_dim / params.width;
    const unsigned count = min(GROUPS, num_groups - first_group);
    if (index < count * params.width) {
        const unsigned i = first_group * params.width + index;
        float coordinate = 0.0f;
        if (params.is_rotated != 0) {
            const float* columns = rotation + head * params.head_dim * params.head_dim + i;
            for (unsigned j = 0; j < params.head_dim; j++) {
                coordinate += columns[j * params.head_dim] * (params.sm_scale * query[frame[j].order] * frame[j].scale);
            }
        } else {
            coordinate = params.sm_scale * query[frame[i].order] * frame[i].scale;
        }
        x[index] = coordinate;
    }
    __syncthreads();
    const unsigned centroids = (head * num_groups + first_group) * params.num_centroids;
    const unsigned table = (blockIdx.y * num_groups + first_group) * params.num_centroids;
    for (unsigned at = index; at < count * params.num_centroids; at += GROUP) {
        const unsigned own = at / params.num_centroids * params.width;
        const unsigned centroid = (centroids + at) * params.width / 2;
        float product = 0.0f;
        for (unsigned pair = 0; pair < params.width / 2; pair++) {
            const float2 values = half_pair(codebooks[centroid + pair]);
            product += x[own + 2 * pair] * values.x + x[own + 2 * pair + 1] * values.y;
        }
        tables[table + at] = product;
    }
    if (blockIdx.x == 0 && index == 0) {
        finals[blockIdx.y] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}
