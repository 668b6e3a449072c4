// Keys as integers with a scale and zero for each channel of a block, in the layout of `encode_channels`.
//
// Interface as in `keys_halves.cuh`; stands on `windows.cuh` and `half.cuh`. A block has `params.group_tokens`.

constexpr unsigned STRIP = 32;

struct KeyPlace {
    const unsigned* block;
    unsigned token;
};

static __device__ KeyPlace place_of(const Params& params, const unsigned* place, unsigned token)
{
    const unsigned block = token / params.group_tokens;
    return {place + block * params.block_words, token - block * params.group_tokens};
}

static __device__ bool is_window(const Params& params)
{
    return params.bits <= MAX_WINDOW_BITS;
}

// What a code of a channel stands for.
static __device__ float value_of(const Params& params, KeyPlace at, unsigned channel, unsigned code)
{
    if (is_window(params)) {
        const float last_code = (float)((1u << params.bits) - 1);
        const Window window = window_of_bits(at.block[channel / 2] >> (16 * (channel % 2)) & 0xffff);
        const float step = step_of(window.exponent);
        return step * (float)code + step * first_of(window, last_code);
    }
    const float2 line = half_pair(at.block[channel]);
    return line.x * (float)code + line.y;
}

static __device__ float4 values_of(const Params& params, KeyPlace at, unsigned channel)
{
    const unsigned* first = at.block + (is_window(params) ? params.head_dim / 2 : params.head_dim);
    const unsigned* strip = first + at.token / STRIP * (params.head_dim * params.bits);
    const unsigned slot = at.token % STRIP;
    unsigned codes[4];
    if (params.bits == 4) {
        const unsigned* words = strip + channel * 4 + slot % 8 / 2;
        const unsigned shift = slot % 2 * 16 + slot / 8 % 2 * 8 + slot / 16 * 4;
        for (unsigned i = 0; i < 4; i++) {
            codes[i] = words[4 * i] >> shift & 15;
        }
    } else if (params.bits == 8) {
        const unsigned* words = strip + channel * 8 + slot / 2;
        for (unsigned i = 0; i < 4; i++) {
            codes[i] = words[i / 2 * 16] >> (slot % 2 * 16 + i % 2 * 8) & 255;
        }
    } else {
        const unsigned bit = (at.token * params.head_dim + channel) * params.bits;
        const unsigned* words = first + bit / 32;
        const unsigned shift = bit % 32;
        unsigned packed = words[0] >> shift;
        if (shift + 4 * params.bits > 32) {
            packed |= words[1] << (32 - shift);
        }
        for (unsigned i = 0; i < 4; i++) {
            codes[i] = packed >> (i * params.bits) & ((1u << params.bits) - 1);
        }
    }
    return make_float4(value_of(params, at, channel, codes[0]), value_of(params, at, channel + 1, codes[1]),
                       value_of(params, at, channel + 2, codes[2]), value_of(params, at, channel + 3, codes[3]));
}

static __device__ float2 tail_at(const Params&, KeyPlace)
{
    return make_float2(1.0f, 0.0f);
}
