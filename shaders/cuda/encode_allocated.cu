// Keys as integers with a step for each channel and a scale for each token, in strips: what `alloc` stores.
//
//   x[t, i] = (key[t, channel[i]] - centre[i]) / step[i]
//   code[t, i] = round(x[t, i] / scale[t] + middle[i]), held at 0 and 2 * middle[i]
//   error(scale) = sum over i of weight[i] * (x[t, i] - scale * (code[t, i] - middle[i]))^2
//
// The scale is a byte e that means 2^((e - 128) / 8): the one of the least error of those tried, first around the ratio of
// the token's spread to the usual one, then around the best of these.
//
// Grid: a block a token: of a span, blockIdx.x, number blockIdx.y. A thread adds up a scale's errors in every
// eighth channel, so that all scales are tried at once.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | spans | [num_spans] KeySpan, see `key_source` | read |
// | 2 | keys | f32 or f16, see `key_source` | read |
// | 3 | planes | see `strips` | read |
// | 4 | channels | [num_coders, head_dim] Channel, by coded position | read |
// | 5 | codes | strips, see `strips` | read, write |
//
// No tokens, no work. Requires finite keys and a head_dim of at most 256, in eights.
// Accuracy: sums in the order of the host; codes and scales are the host's but where the last bits of a quotient, a root, a
// logarithm, or a product and a sum that the device makes one, decide between two that are as near. Halves go to the even
// code.
// Source: docs/methods/hca.md.

#include "parts/half.cuh"
#include "parts/key_source.cuh"
#include "parts/octaves.cuh"

constexpr unsigned GROUP = 128;
constexpr unsigned LANES = 8;
constexpr unsigned NUM_COARSE = 13;
constexpr unsigned NUM_FINE = 6;

#include "parts/strips.cuh"

struct Channel {
    unsigned channel;
    float centre;
    float step;
    float weight;
    float middle;
    float usual;
};

__shared__ float weights[MAX_CHANNELS];
__shared__ float middles[MAX_CHANNELS];
// The square of each coded channel over its usual spread; -1 for others.
__shared__ float spreads[MAX_CHANNELS];
__shared__ float errors[GROUP];

// Scales that are tried first, in eighths of an octave from the usual one: from -48 on in eights, from -24 to 12 in fours.
static __device__ int coarse(unsigned i)
{
    return i < 4 ? 8 * (int)i - 48 : 4 * (int)i - 36;
}

static __device__ int fine(unsigned i)
{
    return i < 3 ? (int)i - 3 : (int)i - 2;
}

static __device__ unsigned exponent_of(int eighths)
{
    return (unsigned)min(max(eighths + 128, 0), 255);
}

// Products are rounded before they are added to, as on the host.
static __device__ float nearest_code(unsigned i, float inverse)
{
    return rintf(fminf(fmaxf(__fmul_rn(x[i], inverse) + middles[i], 0.0f), 2.0f * middles[i]));
}

// What the channels lane, lane + 8, .. leave under a scale.
static __device__ float error_of(const Params& params, unsigned lane, float scale)
{
    const float inverse = 1.0f / scale;
    float sum = 0.0f;
    for (unsigned i = lane; i < params.head_dim; i += LANES) {
        const float error = x[i] - __fmul_rn(scale, nearest_code(i, inverse) - middles[i]);
        sum += __fmul_rn(weights[i] * error, error);
    }
    return sum;
}

// The sum of a candidate's lanes.
static __device__ float error_at(unsigned candidate)
{
    float sum = 0.0f;
    for (unsigned lane = 0; lane < LANES; lane++) {
        sum += errors[candidate * LANES + lane];
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(GROUP)
encode_allocated(Params params, const KeySpan* __restrict__ spans, const unsigned* __restrict__ keys,
                 const unsigned* __restrict__ planes, const Channel* __restrict__ channels,
                 unsigned* __restrict__ codes)
{
    const unsigned index = threadIdx.x;
    const KeySpan span = spans[blockIdx.x];
    if (blockIdx.y >= span.num_tokens) {
        return;
    }
    const Token token = token_at(params, span, blockIdx.y);
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        const Channel own = channels[span.coder * params.head_dim + i];
        float value = 0.0f;
        float spread = -1.0f;
        if (own.usual > 0.0f && own.step > 0.0f) {
            const float key = key_value(keys + token.key, params.is_half != 0, own.channel);
            value = (fminf(fmaxf(key, -65504.0f), 65504.0f) - own.centre) / own.step;
            spread = (value / own.usual) * (value / own.usual);
        }
        x[i] = value;
        spreads[i] = spread;
        weights[i] = own.weight;
        middles[i] = own.middle;
    }
    __syncthreads();
    float total = 0.0f;
    float num_coded = 0.0f;
    for (unsigned i = 0; i < params.head_dim; i++) {
        if (spreads[i] >= 0.0f) {
            total += spreads[i];
            num_coded += 1.0f;
        }
    }
    const float ratio = fmaxf(sqrtf(total / fmaxf(num_coded, 1.0f)), 1e-4f);
    const int nearest = (int)roundf(8.0f * log2f(ratio));
    const unsigned candidate = index / LANES;
    int best = nearest;
    float least = 3.4028235e38f;
    if (candidate < NUM_COARSE) {
        const float scale = octave_scale(exponent_of(nearest + coarse(candidate)));
        errors[index] = error_of(params, index % LANES, scale);
    }
    __syncthreads();
    for (unsigned i = 0; i < NUM_COARSE; i++) {
        const float error = error_at(i);
        if (error < least) {
            least = error;
            best = nearest + coarse(i);
        }
    }
    __syncthreads();
    const int around = best;
    if (candidate < NUM_FINE) {
        const float scale = octave_scale(exponent_of(around + fine(candidate)));
        errors[index] = error_of(params, index % LANES, scale);
    }
    __syncthreads();
    for (unsigned i = 0; i < NUM_FINE; i++) {
        const float error = error_at(i);
        if (error < least) {
            least = error;
            best = around + fine(i);
        }
    }
    const unsigned exponent = exponent_of(best);
    const float inverse = 1.0f / octave_scale(exponent);
    for (unsigned i = index; i < params.head_dim; i += GROUP) {
        chosen[i] = (unsigned)nearest_code(i, inverse);
    }
    __syncthreads();
    write_codes(params, planes + span.coder * params.num_planes, token, codes);
    if (index == 0) {
        write_tail(params, token, 0, 8, exponent, codes);
    }
}
