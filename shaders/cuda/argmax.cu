// The token of the highest logit; of equal ones, that of the lowest id.
//
//   ids[r] = the least i with logits[r, i] = max over j of logits[r, j]
//
// Grid: a block a row, blockIdx.x.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | logits | [num_rows, vocab_size] f32 | read |
// | 2 | ids | [num_rows] u32 | write |
//
// No logit above minus infinity gives NO_TOKEN; one that is NaN or infinite gives BAD_LOGIT.
// Accuracy: exact.

#include "parts/logits.cuh"

constexpr unsigned GROUP = 256;

struct Params {
    unsigned vocab_size;
};

struct Best {
    unsigned key;
    unsigned id;
};

static __device__ Best better(Best a, Best b)
{
    return b.key > a.key || (b.key == a.key && b.id < a.id) ? b : a;
}

extern "C" __global__ void __launch_bounds__(GROUP)
argmax(Params params, const float* __restrict__ logits, unsigned* __restrict__ ids)
{
    __shared__ Best bests[GROUP];
    const unsigned index = threadIdx.x;
    const float* row = logits + blockIdx.x * params.vocab_size;
    Best best = {KEY_IMPOSSIBLE, NO_TOKEN};
    for (unsigned id = index; id < params.vocab_size; id += GROUP) {
        const unsigned key = key_of(row[id]);
        if (key > KEY_IMPOSSIBLE) {
            best = better(best, {key, id});
        }
    }
    bests[index] = best;
    __syncthreads();
    for (unsigned half = GROUP / 2; half > 0; half /= 2) {
        if (index < half) {
            bests[index] = better(bests[index], bests[index + half]);
        }
        __syncthreads();
    }
    if (index == 0) {
        ids[blockIdx.x] = bests[0].key >= KEY_INFINITE ? BAD_LOGIT : bests[0].id;
    }
}
