// Sums of the counts before each, row by row, in place, and of all.
//
//   totals[r] = sum over n of counts[r, n],   counts[r, n] = sum over m < n of counts[r, m]
//
// Grid: a block a row, blockIdx.x.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | counts | [num_rows, num_counts] u32 | read, write |
// | 2 | totals | [num_rows] u32 | write |
//
// No counts: a total of 0.
// Accuracy: exact, up to 2^32.

#include "parts/warp.cuh"

constexpr unsigned GROUP = 256;

#include "parts/scan.cuh"

struct Params {
    unsigned num_counts;
};

extern "C" __global__ void __launch_bounds__(GROUP)
scan_counts(Params params, unsigned* __restrict__ counts, unsigned* __restrict__ totals)
{
    unsigned before = 0;
    for (unsigned first = 0; first < params.num_counts; first += GROUP) {
        const unsigned at = blockIdx.x * params.num_counts + first + threadIdx.x;
        const bool is_inside = first + threadIdx.x < params.num_counts;
        const Sums sums = group_before(is_inside ? counts[at] : 0);
        if (is_inside) {
            counts[at] = before + sums.before;
        }
        before += sums.all;
    }
    if (threadIdx.x == 0) {
        totals[blockIdx.x] = before;
    }
}
