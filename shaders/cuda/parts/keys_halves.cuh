// Keys in f16, a row a token.
//
// Interface, the same in every `keys_` part: `KeyPlace`, `place_of`, `values_of`, `tail_at`. Stands on `half.cuh`, and on
// `Params` as `score_keys` has them. A block is a row.

struct KeyPlace {
    const unsigned* row;
};

// Of a token of those that begin with the block at a place.
static __device__ KeyPlace place_of(const Params& params, const unsigned* place, unsigned token)
{
    return {place + token * params.block_words};
}

// What the codes of four neighbouring channels stand for.
static __device__ float4 values_of(const Params&, KeyPlace at, unsigned channel)
{
    const float2 low = half_pair(at.row[channel / 2]);
    const float2 high = half_pair(at.row[channel / 2 + 1]);
    return make_float4(low.x, low.y, high.x, high.y);
}

// Scale and zero of the token.
static __device__ float2 tail_at(const Params&, KeyPlace)
{
    return make_float2(1.0f, 0.0f);
}
