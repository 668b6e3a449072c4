// Rotated keys as numbers of the levels of a codebook, with a scale per token, in strips.
//
//   x = R (key - centre),   code[t, c] = the level nearest to x[t, c] / rms(x[t])
//   scale[t] = sum over c of x[t, c] * level[code] / sum over c of level[code]^2
//
// Grid: a block a token: of a span, blockIdx.x, number blockIdx.y.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | spans | [num_spans] KeySpan, see `key_source` | read |
// | 2 | keys | f32 or f16, see `key_source` | read |
// | 3 | planes | see `strips` | read |
// | 4 | turns | see `rotation` | read |
// | 5 | codes | strips, see `strips` | read, write |
// | 6 | levels | [2^bits] f32, rising | read |
//
// No tokens, no work. Requires finite keys and a head_dim of at most 256.
// Accuracy: sums in the order of the host, by every thread; codes and scales are the host's but where the last bits of a
// root, a quotient, or a product and a sum that the device makes one, decide.
// Source: TurboQuant, arXiv 2504.19874; Max 1960.

#include "parts/half.cuh"
#include "parts/halves.cuh"
#include "parts/key_source.cuh"

constexpr unsigned GROUP = 64;

#include "parts/strips.cuh"
#include "parts/rotation.cuh"

// Levels as they are, of values over their root mean square.
static __device__ unsigned nearest_level(const float* levels, unsigned last, float value)
{
    unsigned level = 0;
    while (level < last && value > 0.5f * (levels[level] + levels[level + 1])) {
        level++;
    }
    return level;
}

// Products are rounded before they are added, as on the host.
extern "C" __global__ void __launch_bounds__(GROUP)
encode_levels(Params params, const KeySpan* __restrict__ spans, const unsigned* __restrict__ keys,
              const unsigned* __restrict__ planes, const float2* __restrict__ turns, unsigned* __restrict__ codes,
              const float* __restrict__ levels)
{
    const unsigned index = threadIdx.x;
    const KeySpan span = spans[blockIdx.x];
    if (blockIdx.y >= span.num_tokens) {
        return;
    }
    const Token token = token_at(params, span, blockIdx.y);
    load_key(params, keys + token.key);
    rotate(params, turns + span.coder * params.head_dim);
    float energy = 0.0f;
    for (unsigned i = 0; i < params.head_dim; i++) {
        energy += __fmul_rn(x[i], x[i]);
    }
    const float rms = sqrtf(energy / (float)params.head_dim);
    const float inverse = rms > 0.0f ? 1.0f / rms : 0.0f;
    const unsigned last = (1u << params.bits) - 1;
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        chosen[i] = nearest_level(levels, last, x[i] * inverse);
    }
    __syncthreads();
    write_codes(params, planes + span.coder * params.num_planes, token, codes);
    if (index == 0) {
        float along = 0.0f;
        float norm = 0.0f;
        for (unsigned i = 0; i < params.head_dim; i++) {
            const float level = levels[chosen[i]];
            along += __fmul_rn(x[i], level);
            norm += __fmul_rn(level, level);
        }
        write_tail(params, token, 0, 16, half_of(along / norm), codes);
    }
}
