// How much the queries of each KV head's group look at each channel, over stretches of tokens.
//
//   energy[s, kv, c] = sum over t of stretch s, h of the group of kv, of q[t, h, c]^2
//
// Grid: a block a stretch of STRETCH tokens, blockIdx.x, and a KV head, blockIdx.y; threads stride over
// channels.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | q | [tokens, num_qo_heads, head_dim] f32 | read |
// | 2 | energy | [num_stretches, num_kv_heads, head_dim] f32 | write |
//
// No tokens: no blocks.
// Accuracy: f32; stretches are for the host to add up in f64.

constexpr unsigned GROUP = 64;
constexpr unsigned STRETCH = 64;

struct Params {
    unsigned tokens;
    unsigned group_size;
    unsigned num_kv_heads;
    unsigned head_dim;
};

extern "C" __global__ void __launch_bounds__(GROUP)
query_energy(Params params, const float* __restrict__ q, float* __restrict__ energy)
{
    const unsigned first = blockIdx.x * STRETCH;
    const unsigned end = min(params.tokens, first + STRETCH);
    const unsigned num_qo_heads = params.num_kv_heads * params.group_size;
    for (unsigned c = threadIdx.x; c < params.head_dim; c += GROUP) {
        float sum = 0.0f;
        for (unsigned t = first; t < end; t++) {
            for (unsigned g = 0; g < params.group_size; g++) {
                const unsigned head = blockIdx.y * params.group_size + g;
                const float x = q[(t * num_qo_heads + head) * params.head_dim + c];
                sum += x * x;
            }
        }
        energy[(blockIdx.x * params.num_kv_heads + blockIdx.y) * params.head_dim + c] = sum;
    }
}
