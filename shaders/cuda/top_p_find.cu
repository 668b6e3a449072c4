// The bin in which a head's selection ends, which gives the next bits of the key of its last token.
//
// Bins are taken from the largest key down until
//
//   (mass >= target_mass and count >= at_least) or count >= at_most
//
// holds. At the last level all tokens of a bin have one weight, and as many of them are taken as are needed. The
// histogram is cleared for the next level.
//
// Grid: a block a query head, blockIdx.x.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | choices | [num_qo_heads] Choice | read, write |
// | 2 | counts | [num_qo_heads, 1024] u32 | read, write |
// | 3 | rests | [num_qo_heads, 1024] u32 | read, write |
//
// Where nothing has to be taken, or at_most is 0, no token is; where even all of them are not enough, all are.
// Accuracy: masses are f32 sums of 1,024 bins: tokens whose taking would move the mass by less than 1e-4 of itself may
// fall either way.
// Source: HCAttention, arXiv 2507.19823, section 3.3; ties fall to the lower position.

#include "parts/warp.cuh"
#include "parts/choice.cuh"
#include "parts/scan.cuh"

constexpr unsigned BINS = 1024;
constexpr unsigned OWN_BINS = BINS / GROUP;

struct Params {
    unsigned shift;
    // What the sum of rests counts in, of the exponent of the bin.
    float rest_unit;
    unsigned at_least;
    unsigned at_most;
};

static __device__ bool is_enough(const Params& params, const Choice& choice, unsigned count, float mass)
{
    return (mass >= choice.target_mass && count >= params.at_least) || count >= params.at_most;
}

static __device__ float mass_of(const Params& params, unsigned least_key, unsigned count, unsigned rest)
{
    const float exponent = __uint_as_float(least_key & 0x7f800000);
    return (float)count * __uint_as_float(least_key) + exponent * params.rest_unit * (float)rest;
}

extern "C" __global__ void __launch_bounds__(GROUP)
top_p_find(Params params, Choice* __restrict__ choices, unsigned* __restrict__ counts,
           unsigned* __restrict__ rests)
{
    __shared__ float warp_masses[GROUP / WARP];
    __shared__ unsigned found;
    const unsigned index = threadIdx.x;
    const unsigned head = blockIdx.x;
    const Choice choice = choices[head];
    if (index == 0) {
        found = BINS;
    }
    // Thread 0 has the largest keys; a thread's bins fall, too.
    unsigned own_counts[OWN_BINS];
    float own_masses[OWN_BINS];
    unsigned count = 0;
    float mass = 0.0f;
    for (unsigned i = 0; i < OWN_BINS; i++) {
        const unsigned bin = BINS - 1 - index * OWN_BINS - i;
        const unsigned at = head * BINS + bin;
        const unsigned least_key = choice.key | (bin << params.shift);
        own_counts[i] = counts[at];
        own_masses[i] = counts[at] == 0 ? 0.0f : mass_of(params, least_key, counts[at], rests[at]);
        count += own_counts[i];
        mass += own_masses[i];
        counts[at] = 0;
        rests[at] = 0;
    }
    const unsigned count_before = choice.above + group_before(count).before;
    // The mass of the threads before this one: of its warp, then of the warps before.
    const float to_lane = sum_to_lane(mass);
    const float to_last_lane = __shfl_up_sync(ALL_LANES, to_lane, 1);
    if (index % WARP == WARP - 1) {
        warp_masses[index / WARP] = to_lane;
    }
    __syncthreads();
    float mass_before = choice.mass;
    for (unsigned warp = 0; warp < index / WARP; warp++) {
        mass_before += warp_masses[warp];
    }
    mass_before += index % WARP == 0 ? 0.0f : to_last_lane;
    // Whether the resident tokens are enough: a question of the first level alone.
    const bool is_none = params.shift == 20 && is_enough(params, choice, 0, 0.0f);
    if (choice.is_found == 0 && is_none) {
        if (index == 0) {
            choices[head].key = 0xffffffff;
            choices[head].ties = 0;
            choices[head].is_found = 1;
        }
    } else if (choice.is_found == 0) {
        unsigned above = count_before;
        float mass_above = mass_before;
        for (unsigned i = 0; i < OWN_BINS; i++) {
            above += own_counts[i];
            mass_above += own_masses[i];
            if (own_counts[i] > 0 && is_enough(params, choice, above, mass_above)) {
                atomicMin(&found, index * OWN_BINS + i);
            }
        }
    }
    __syncthreads();
    const unsigned place = found;
    if (choice.is_found != 0 || is_none) {
        return;
    }
    if (place == BINS) {
        // All of them are not enough, or, behind the first level, were so but for rounding: they are taken down to the
        // least key that the bits found so far allow.
        if (index == 0) {
            choices[head].ties = 0xffffffff;
            choices[head].is_found = 1;
        }
        return;
    }
    if (place / OWN_BINS == index) {
        unsigned above = count_before;
        float mass_above = mass_before;
        for (unsigned i = 0; i < place % OWN_BINS; i++) {
            above += own_counts[i];
            mass_above += own_masses[i];
        }
        const unsigned key = choice.key | ((BINS - 1 - place) << params.shift);
        choices[head].key = key;
        choices[head].above = above;
        choices[head].mass = mass_above;
        if (params.shift == 0) {
            const unsigned most = min(own_counts[place % OWN_BINS], params.at_most - above);
            const float by_mass = ceilf((choice.target_mass - mass_above) / __uint_as_float(key));
            const unsigned by_count = params.at_least - min(params.at_least, above);
            const unsigned needed = max((unsigned)fminf(fmaxf(by_mass, 1.0f), (float)most), by_count);
            choices[head].ties = min(max(needed, 1u), most);
            choices[head].is_found = 1;
        }
    }
}
