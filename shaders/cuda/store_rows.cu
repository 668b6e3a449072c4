// Exact keys and values into pages, in half precision.
//
//   rows[place of t, c] = f16(k[t, kv, c]),   rows[place of t + page_tokens * head_dim, c] = f16(v[t, kv, c])
//
// for each row that the list names: a token t of a KV head.
//
// Grid: a block a row, blockIdx.x + blockIdx.y * gridDim.x; a thread a pair of channels.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | slots | [num_slots] Slot | read |
// | 2 | k | [tokens, num_kv_heads, head_dim] f32, as pairs | read |
// | 3 | v | [tokens, num_kv_heads, head_dim] f32, as pairs | read |
// | 4 | rows | pages: keys [page_tokens, head_dim], then values of the same shape, f16, two a word | write |
//
// Requires an even head_dim. No slots: no blocks. What f16 cannot hold is clamped to +-65,504, as on the host.
// Accuracy: that of f16, rounded as the device rounds.

#include "parts/half.cuh"
#include "parts/halves.cuh"

constexpr unsigned GROUP = 64;

struct Params {
    unsigned num_slots;
    unsigned num_kv_heads;
    unsigned pairs;
    unsigned page_tokens;
};

struct Slot {
    unsigned token;
    unsigned kv_head;
    // Of the key, in words.
    unsigned place;
};

static __device__ unsigned word_of(float2 pair)
{
    return half_of(pair.x) | half_of(pair.y) << 16;
}

extern "C" __global__ void __launch_bounds__(GROUP)
store_rows(Params params, const Slot* __restrict__ slots, const float2* __restrict__ k, const float2* __restrict__ v,
           unsigned* __restrict__ rows)
{
    const unsigned number = blockIdx.x + blockIdx.y * gridDim.x;
    if (number >= params.num_slots) {
        return;
    }
    const Slot slot = slots[number];
    const unsigned source = (slot.token * params.num_kv_heads + slot.kv_head) * params.pairs;
    const unsigned to_value = params.page_tokens * params.pairs;
    for (unsigned i = threadIdx.x; i < params.pairs; i += GROUP) {
        rows[slot.place + i] = word_of(k[source + i]);
        rows[slot.place + to_value + i] = word_of(v[source + i]);
    }
}
