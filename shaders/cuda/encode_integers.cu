// Keys as affine integers per token, in strips.
//
//   code[t, c] = round((x[t, c] - zero[t]) / scale[t]),   x = R key, or the key itself
//
// with zero and scale as in `affine`: what `int...-token` and `rot-int...-token` store.
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
//
// No tokens, no work. Requires finite keys and a head_dim of at most 256.
// Accuracy: scale, zero and codes are those of the host but where the last bit of a quotient, or of a product and a sum
// that the device makes one, decides; errors are at most half a step, but for those bits.
// Source: docs/methods/hca.md; QuaRot, arXiv 2404.00456, for the rotation.

#include "parts/half.cuh"
#include "parts/halves.cuh"
#include "parts/affine.cuh"
#include "parts/key_source.cuh"
#include "parts/warp.cuh"

constexpr unsigned GROUP = 64;

#include "parts/reduce.cuh"
#include "parts/strips.cuh"
#include "parts/rotation.cuh"

extern "C" __global__ void __launch_bounds__(GROUP)
encode_integers(Params params, const KeySpan* __restrict__ spans, const unsigned* __restrict__ keys,
                const unsigned* __restrict__ planes, const float2* __restrict__ turns, unsigned* __restrict__ codes)
{
    const unsigned index = threadIdx.x;
    const KeySpan span = spans[blockIdx.x];
    if (blockIdx.y >= span.num_tokens) {
        return;
    }
    const Token token = token_at(params, span, blockIdx.y);
    load_key(params, keys + token.key);
    if (params.block > 0) {
        rotate(params, turns + span.coder * params.head_dim);
    }
    float own_low = 3.4028235e38f;
    float own_high = -3.4028235e38f;
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        own_low = fminf(own_low, x[i]);
        own_high = fmaxf(own_high, x[i]);
    }
    const float low = -group_max(-own_low);
    const float high = group_max(own_high);
    const float last_code = (float)((1u << params.bits) - 1);
    const Affine affine = affine_of(low, high, last_code);
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        chosen[i] = affine_code(affine, x[i], last_code);
    }
    __syncthreads();
    write_codes(params, planes + span.coder * params.num_planes, token, codes);
    if (index == 0) {
        write_tail(params, token, 0, 16, affine.scale, codes);
        write_tail(params, token, 1, 16, affine.zero, codes);
    }
}
