// Sums and maxima over the GROUP threads of a block: of each warp by exchanges, then of the warps in order.
//
// Stands on `warp.cuh`; a kernel names GROUP before it includes this and calls from uniform control flow. Every thread
// gets the result. Order of additions: the same in every run.

static __device__ float group_sum(float x)
{
    __shared__ float slots[GROUP / WARP];
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, step);
    }
    if (threadIdx.x % WARP == 0) {
        slots[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < GROUP / WARP; warp++) {
        sum += slots[warp];
    }
    __syncthreads();
    return sum;
}

static __device__ float group_max(float x)
{
    __shared__ float slots[GROUP / WARP];
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    if (threadIdx.x % WARP == 0) {
        slots[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    float largest = slots[0];
    for (unsigned warp = 1; warp < GROUP / WARP; warp++) {
        largest = fmaxf(largest, slots[warp]);
    }
    __syncthreads();
    return largest;
}
