// Keys as bytes in strips of 32 tokens: for each pair of channels two bytes of every token, then the tails of all.
//
// Interface as in `keys_halves.cuh`; stands on `tails.cuh`. A block is a strip.

struct KeyPlace {
    const unsigned* strip;
    unsigned slot;
};

static __device__ KeyPlace place_of(const Params& params, const unsigned* place, unsigned token)
{
    return {place + token / STRIP * params.block_words, token % STRIP};
}

static __device__ float4 values_of(const Params&, KeyPlace at, unsigned channel)
{
    const unsigned* words = at.strip + channel / 2 * (STRIP / 2) + at.slot / 2;
    const unsigned low = words[0] >> (at.slot % 2 * 16);
    const unsigned high = words[STRIP / 2] >> (at.slot % 2 * 16);
    return make_float4((float)(low & 255), (float)(low >> 8 & 255), (float)(high & 255), (float)(high >> 8 & 255));
}

static __device__ float2 tail_at(const Params& params, KeyPlace at)
{
    return tail_of(params.tail, at.strip + params.head_dim * (STRIP / 4), at.slot);
}
