// The rotation of a key in shared memory: a centre is taken from it, signs, then a Walsh–Hadamard transform.
//
// Stands on `strips.cuh`. Of the buffers of a kernel:
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 4 | turns | [num_coders, head_dim] centre, and sign over the root of the block's length, f32; a word where the block is 0 | read |

// All threads, behind a barrier, by the turns of a coder; one comes after.
static __device__ void rotate(const Params& params, const float2* turns)
{
    for (unsigned i = threadIdx.x; i < params.head_dim; i += GROUP) {
        const float2 turn = turns[i];
        x[i] = (fminf(fmaxf(x[i], -65504.0f), 65504.0f) - turn.x) * turn.y;
    }
    __syncthreads();
    for (unsigned half = 1; half < params.block; half *= 2) {
        for (unsigned pair = threadIdx.x; pair < params.head_dim / 2; pair += GROUP) {
            const unsigned low = pair / half * 2 * half + pair % half;
            const float a = x[low];
            const float b = x[low + half];
            x[low] = a + b;
            x[low + half] = a - b;
        }
        __syncthreads();
    }
}
