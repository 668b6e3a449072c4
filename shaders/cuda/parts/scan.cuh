// Sums of what the threads of a block before each have.
//
// Stands on `warp.cuh`; a kernel names GROUP before it includes this and calls from uniform control flow.

// The sum of `x` of the lanes of a warp up to this one.
template <class T> static __device__ T sum_to_lane(T x)
{
    for (unsigned step = 1; step < WARP; step *= 2) {
        const T before = __shfl_up_sync(ALL_LANES, x, step);
        if (threadIdx.x % WARP >= step) {
            x += before;
        }
    }
    return x;
}

struct Sums {
    unsigned before;
    unsigned all;
};

// The sum of `x` of the threads before this one, and of all threads.
static __device__ Sums group_before(unsigned x)
{
    __shared__ unsigned slots[GROUP / WARP];
    const unsigned own_warp = threadIdx.x / WARP;
    const unsigned to_lane = sum_to_lane(x);
    if (threadIdx.x % WARP == WARP - 1) {
        slots[own_warp] = to_lane;
    }
    __syncthreads();
    Sums sums = {to_lane - x, 0};
    for (unsigned warp = 0; warp < GROUP / WARP; warp++) {
        if (warp < own_warp) {
            sums.before += slots[warp];
        }
        sums.all += slots[warp];
    }
    __syncthreads();
    return sums;
}
