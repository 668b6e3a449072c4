// Keys as affine integers per channel over a block of tokens: what `int...-channel/G` stores.
//
//   code[t, c] = round((key[t, c] - zero[c]) / scale[c])
//
// A block is the scale and zero of every channel, then the codes of its tokens. Of 8 and 6 bits, scale and zero are as in
// `affine`, a word together. Of fewer bits they are a window of two bytes, see `windows`: of those that the ends of the
// values fill, with steps around the range's share, and the one of whole multiples that reaches them, the one of the
// least squared error.
//
// Codes of 4 bits lie in strips of 32 tokens, a plane of nibbles for each channel; those of 8 in strips of two bytes of
// every token for each pair of channels; others one after the other, token by token, from the lowest bit up.
//
// Grid: a block a span, blockIdx.x, which is a whole block; a thread a channel, then a word of codes.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | spans | [num_spans] KeySpan, see `key_source`; coder, slot and num_tokens are not looked at | read |
// | 2 | keys | f32 or f16, see `key_source` | read |
// | 3 | codes | blocks, as words | write |
//
// No spans, no work. Requires finite keys, and a head_dim of at most 256, in eights.
// Accuracy: scale, zero and codes are those of the host but where the last bits of a quotient, a logarithm, or a product
// and a sum that the device makes one, decide; halves go to the even code of a window, up otherwise.
// Source: KIVI, arXiv 2402.02750; docs/methods/hca.md.

#include "parts/half.cuh"
#include "parts/halves.cuh"
#include "parts/affine.cuh"
#include "parts/key_source.cuh"
#include "parts/octaves.cuh"
#include "parts/windows.cuh"

constexpr unsigned GROUP = 64;
constexpr unsigned MAX_CHANNELS = 256;
constexpr unsigned STRIP = 32;

// Sums of squared errors at a time.
constexpr unsigned LANES = 8;

// Steps from zero to the largest value under the smallest step that reaches it.
constexpr float REACH = 59.48f;

// Logarithms beyond are of nothing.
constexpr float MAX_EIGHTHS = 10000.0f;

struct Params {
    unsigned head_dim;
    unsigned key_stride;
    unsigned is_half;
    unsigned bits;
    unsigned group_tokens;
    unsigned num_code_words;
};

// Keys of a block, from the first token's on.
struct Block {
    const Params& params;
    const unsigned* keys;
    float last_code;

    __device__ float value(unsigned token, unsigned channel) const
    {
        return key_value(keys + token * params.key_stride, params.is_half != 0, channel);
    }

    __device__ bool is_window() const { return params.bits <= MAX_WINDOW_BITS; }
};

// Steps above the range's share that a search goes down.
static __device__ int search_depth(unsigned bits)
{
    return bits < 3 ? 9 : bits == 3 ? 5 : 3;
}

static __device__ float eighths_of(float value)
{
    return value > 0.0f ? fminf(fmaxf(8.0f * log2f(value), -MAX_EIGHTHS), MAX_EIGHTHS) : -MAX_EIGHTHS;
}

static __device__ int clamped(int exponent)
{
    return min(max(exponent, -128), 127);
}

// Where a value lies from the first value of a window, were there codes beyond its ends.
static __device__ float place_in(Window window, float value, float last_code)
{
    return rintf(value / step_of(window.exponent) - first_of(window, last_code));
}

// In the order of the host: eight sums, then theirs. Products are rounded before they are added to.
static __device__ float squared_error(const Block& block, Window window, unsigned channel)
{
    const float step = step_of(window.exponent);
    const float from_zero = first_of(window, block.last_code);
    const float inverse = 1.0f / step;
    float sums[LANES] = {};
    for (unsigned first = 0; first < block.params.group_tokens; first += LANES) {
        for (unsigned i = 0; i < LANES; i++) {
            const float value = block.value(first + i, channel);
            const float place = rintf(__fmul_rn(value, inverse) - from_zero);
            const float code = fminf(fmaxf(place, 0.0f), block.last_code);
            const float error = value - __fmul_rn(step, from_zero + code);
            sums[i] += __fmul_rn(error, error);
        }
    }
    float sum = 0.0f;
    for (unsigned i = 0; i < LANES; i++) {
        sum += sums[i];
    }
    return sum;
}

// The window of the least error for values from `low` to `high`.
static __device__ Window window_of(const Block& block, float low, float high, unsigned channel)
{
    const int smallest = (int)ceilf(eighths_of(fmaxf(fabsf(low), fabsf(high)) / REACH));
    // But for the rounding of the logarithm.
    const int filled = (int)floorf(eighths_of((high - low) / block.last_code) + 1e-3f);
    const int bottom = filled - search_depth(block.params.bits);
    const int reaching = clamped(smallest);
    const float middle = 2.0f * floorf(0.5f * (low + high) / step_of(reaching)) + 1.0f;
    Window best = {reaching, (int)fminf(fmaxf(middle, -127.0f), 127.0f)};
    float least = 3.4028235e38f;
    // A step far below all others leaves most of the values outside.
    if (smallest >= bottom) {
        least = squared_error(block, best, channel);
    }
    for (int exponent = clamped(filled + 1); exponent >= clamped(bottom); exponent--) {
        const float centre = rintf((low + high) / step_of(exponent));
        if (centre < -128.0f || centre > 127.0f) {
            continue;
        }
        const Window window = {exponent, (int)centre};
        if (place_in(window, low, block.last_code) <= 0.0f &&
            place_in(window, high, block.last_code) >= block.last_code) {
            const float error = squared_error(block, window, channel);
            if (error < least) {
                least = error;
                best = window;
            }
        }
    }
    return best;
}

// The stored scale and zero of a channel.
static __device__ unsigned header_of(const Block& block, unsigned channel)
{
    float low = 3.4028235e38f;
    float high = -3.4028235e38f;
    for (unsigned t = 0; t < block.params.group_tokens; t++) {
        const float value = block.value(t, channel);
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
    if (block.is_window()) {
        return window_bits(window_of(block, low, high, channel));
    }
    const Affine affine = affine_of(low, high, block.last_code);
    return affine.scale | affine.zero << 16;
}

static __device__ unsigned code_of(const Block& block, const unsigned* headers, unsigned token, unsigned channel)
{
    const float value = block.value(token, channel);
    const unsigned header = headers[channel];
    if (block.is_window()) {
        const float place = place_in(window_of_bits(header), value, block.last_code);
        return (unsigned)fminf(fmaxf(place, 0.0f), block.last_code);
    }
    return affine_code({header & 0xffff, header >> 16}, value, block.last_code);
}

// A word of the codes of a block.
static __device__ unsigned code_word(const Block& block, const unsigned* headers, unsigned word)
{
    const unsigned bits = block.params.bits;
    const unsigned head_dim = block.params.head_dim;
    unsigned packed = 0;
    if (bits == 4) {
        const unsigned plane_words = STRIP / 8;
        const unsigned strip = word / (head_dim * plane_words);
        const unsigned channel = word / plane_words % head_dim;
        for (unsigned nibble = 0; nibble < 8; nibble++) {
            const unsigned byte = nibble / 2;
            const unsigned slot = word % plane_words * 2 + byte / 2 + byte % 2 * 8 + nibble % 2 * 16;
            packed |= code_of(block, headers, strip * STRIP + slot, channel) << (4 * nibble);
        }
    } else if (bits == 8) {
        const unsigned pair_words = STRIP / 2;
        const unsigned strip = word / (head_dim / 2 * pair_words);
        const unsigned channel = word / pair_words % (head_dim / 2) * 2;
        for (unsigned byte = 0; byte < 4; byte++) {
            const unsigned slot = word % pair_words * 2 + byte / 2;
            packed |= code_of(block, headers, strip * STRIP + slot, channel + byte % 2) << (8 * byte);
        }
    } else {
        const unsigned begin = 32 * word;
        for (unsigned i = begin / bits; i * bits < begin + 32; i++) {
            const unsigned code = code_of(block, headers, i / head_dim, i % head_dim);
            const unsigned bit = i * bits;
            packed |= bit < begin ? code >> (begin - bit) : code << (bit - begin);
        }
    }
    return packed;
}

extern "C" __global__ void __launch_bounds__(GROUP)
encode_channels(Params params, const KeySpan* __restrict__ spans, const unsigned* __restrict__ keys,
                unsigned* __restrict__ codes)
{
    // The stored scale and zero of each channel.
    __shared__ unsigned headers[MAX_CHANNELS];
    const unsigned index = threadIdx.x;
    const KeySpan span = spans[blockIdx.x];
    const Block block = {params, keys + span.key, (float)((1u << params.bits) - 1)};
    for (unsigned channel = index; channel < params.head_dim; channel += GROUP) {
        headers[channel] = header_of(block, channel);
    }
    __syncthreads();
    // Headers of two bytes, two a word.
    const unsigned num_header_words = block.is_window() ? params.head_dim / 2 : params.head_dim;
    for (unsigned word = index; word < num_header_words; word += GROUP) {
        codes[span.place + word] =
            block.is_window() ? headers[2 * word] | headers[2 * word + 1] << 16 : headers[word];
    }
    unsigned* words = codes + span.place + num_header_words;
    for (unsigned word = index; word < params.num_code_words; word += GROUP) {
        words[word] = code_word(block, headers, word);
    }
}
