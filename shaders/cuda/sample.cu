// The next token: temperature, top-k, top-p, min-p, then one draw by a uniform number.
//
//   weight[i] = exp((logits[i] - max over j of logits[j]) / temperature)
//
// Tokens are ordered by falling logit, of equal ones by rising id. Kept are the first top_k; of these the fewest whose
// weights reach top_p of all; of these those of a weight of at least min_p. So what is kept is a prefix of the order: the
// tokens of larger keys than its last one's, and the first so many, by id, of that key. The token is where uniform times
// the sum of the kept weights falls when these lie end to end: in the order above where top_p < 1, else by id.
//
// Grid: a block a row, blockIdx.x; a thread has tokens that follow each other. The end of a prefix is found bit by
// bit, a pass over the logits for each bit of a key.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | logits | [num_rows, vocab_size] f32; minus infinity excludes a token | read |
// | 2 | uniforms | [num_rows] f32, from 0 to below 1 | read |
// | 3 | ids | [num_rows] u32 | write |
//
// No logit above minus infinity gives NO_TOKEN; one that is NaN or infinite gives BAD_LOGIT. Requires a temperature above
// 0, top_k of at least 1, top_p above 0.
// Accuracy: weights and their sums in f32; a token whose edge lies within the rounding of these, or of a number of 24 bits,
// may be its neighbour's.
// Source: crates/model/src/sampler.rs, whose rule this is, but for the penalty of repetitions, which is the caller's.

#include "parts/logits.cuh"
#include "parts/warp.cuh"

constexpr unsigned GROUP = 256;

#include "parts/reduce.cuh"
#include "parts/scan.cuh"

struct Params {
    unsigned vocab_size;
    float temperature;
    unsigned top_k;
    float top_p;
    float min_p;
};

// The first tokens in order: all of larger keys, and `ties` of this one.
struct Prefix {
    unsigned key;
    unsigned ties;
};

// The tokens of a thread, and the highest logit of all.
struct Own {
    const float* logits;
    unsigned first;
    unsigned end;
    float temperature;
    float highest;

    __device__ float weight_of(float logit) const { return expf((logit - highest) / temperature); }

    __device__ float weight_at(unsigned key) const { return weight_of(logit_of(key)); }
};

// How many tokens have a key of at least so much.
static __device__ unsigned count_from(const Own& own, unsigned key)
{
    unsigned count = 0;
    for (unsigned id = own.first; id < own.end; id++) {
        count += key_of(own.logits[id]) >= key;
    }
    return group_before(count).all;
}

// And their mass.
static __device__ float mass_from(const Own& own, unsigned key)
{
    float mass = 0.0f;
    for (unsigned id = own.first; id < own.end; id++) {
        const float logit = own.logits[id];
        if (key_of(logit) >= key) {
            mass += own.weight_of(logit);
        }
    }
    return group_sum(mass);
}

static __device__ float mass_of(const Own& own, Prefix prefix)
{
    const float above = mass_from(own, prefix.key + 1);
    return above + (prefix.ties > 0 ? (float)prefix.ties * own.weight_at(prefix.key) : 0.0f);
}

// The first `count` tokens, or all that are possible.
static __device__ Prefix first_tokens(const Own& own, unsigned count)
{
    unsigned key = 0;
    for (unsigned bit = 1u << 31; bit > 0; bit /= 2) {
        if (count_from(own, key | bit) >= count) {
            key |= bit;
        }
    }
    const unsigned num_larger = count_from(own, key + 1);
    if (key <= KEY_IMPOSSIBLE) {
        return {KEY_IMPOSSIBLE, 0};
    }
    return {key, count - num_larger};
}

// The fewest tokens of a prefix whose mass reaches `mass`, or, where it has to be more, is above it.
static __device__ Prefix first_mass(const Own& own, Prefix within, float mass, bool is_above)
{
    unsigned key = 0;
    for (unsigned bit = 1u << 31; bit > 0; bit /= 2) {
        const float from_key = mass_from(own, key | bit);
        const bool is_enough = from_key > mass || (from_key == mass && !is_above);
        // All of the prefix has enough.
        if (is_enough || (key | bit) <= within.key) {
            key |= bit;
        }
    }
    const float above = mass_from(own, key + 1);
    const unsigned num_larger = count_from(own, key + 1);
    const unsigned num_equal = count_from(own, key) - num_larger;
    const unsigned available = key == within.key ? within.ties : num_equal;
    const float share = fmaxf(mass - above, 0.0f) / own.weight_at(key);
    const float needed = is_above ? floorf(share) + 1.0f : ceilf(share);
    return {key, (unsigned)fminf(fmaxf(needed, 1.0f), (float)max(available, 1u))};
}

// The tokens of a prefix of a weight of at least `least`, at most 1: the first one's weight.
static __device__ Prefix heavy_tokens(const Own& own, Prefix within, float least)
{
    unsigned below = 0;
    for (unsigned bit = 1u << 31; bit > 0; bit /= 2) {
        const unsigned key = below | bit;
        if (key <= KEY_IMPOSSIBLE || (key < key_of(own.highest) && own.weight_at(key) < least)) {
            below = key;
        }
    }
    return below < within.key ? within : Prefix{below, 0};
}

// How many tokens of threads before this one have a key.
static __device__ unsigned rank_of(const Own& own, unsigned key)
{
    unsigned own_ties = 0;
    for (unsigned id = own.first; id < own.end; id++) {
        own_ties += key_of(own.logits[id]) == key;
    }
    return group_before(own_ties).before;
}

// The token at a mass of those of a prefix that lie end to end by id, which is written by the thread that has it.
static __device__ void draw_by_id(const Own& own, Prefix prefix, float uniform_number, unsigned* drawn_id)
{
    __shared__ float masses[GROUP];
    const unsigned first_rank = rank_of(own, prefix.key);
    unsigned rank = first_rank;
    float mass = 0.0f;
    for (unsigned id = own.first; id < own.end; id++) {
        const float logit = own.logits[id];
        const unsigned key = key_of(logit);
        if (key > prefix.key || (key == prefix.key && rank < prefix.ties)) {
            mass += own.weight_of(logit);
        }
        rank += key == prefix.key;
    }
    masses[threadIdx.x] = mass;
    __syncthreads();
    float before = 0.0f;
    float total = 0.0f;
    for (unsigned i = 0; i < GROUP; i++) {
        if (i == threadIdx.x) {
            before = total;
        }
        total += masses[i];
    }
    // Below the total, whatever the product rounds to.
    const float drawn = fminf(uniform_number * total, __uint_as_float(__float_as_uint(total) - 1));
    if (drawn < before || drawn >= before + mass) {
        return;
    }
    rank = first_rank;
    float sum = before;
    for (unsigned id = own.first; id < own.end; id++) {
        const float logit = own.logits[id];
        const unsigned key = key_of(logit);
        const bool is_kept = key > prefix.key || (key == prefix.key && rank < prefix.ties);
        const float weight = own.weight_of(logit);
        if (is_kept && weight > 0.0f) {
            *drawn_id = id;
            sum += weight;
            if (sum > drawn) {
                return;
            }
        }
        rank += key == prefix.key;
    }
}

// The last token of a prefix, which is written by the thread that has it.
static __device__ void take_last(const Own& own, Prefix prefix, unsigned* drawn_id)
{
    unsigned rank = rank_of(own, prefix.key);
    for (unsigned id = own.first; id < own.end; id++) {
        if (key_of(own.logits[id]) == prefix.key) {
            rank++;
            if (rank == prefix.ties) {
                *drawn_id = id;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(GROUP)
sample(Params params, const float* __restrict__ logits, const float* __restrict__ uniforms,
       unsigned* __restrict__ ids)
{
    const unsigned row = blockIdx.x;
    const unsigned num_own = (params.vocab_size + GROUP - 1) / GROUP;
    const unsigned first = min(threadIdx.x * num_own, params.vocab_size);
    const unsigned end = min(first + num_own, params.vocab_size);
    Own own = {logits + row * params.vocab_size, first, end, params.temperature, 0.0f};
    const unsigned num_bad = count_from(own, KEY_INFINITE);
    const unsigned num_possible = count_from(own, KEY_IMPOSSIBLE + 1);
    if (num_bad > 0 || num_possible == 0) {
        // Nobody has tokens, and so nobody has the one that is drawn.
        own.end = own.first;
        if (threadIdx.x == 0) {
            ids[row] = num_bad > 0 ? BAD_LOGIT : NO_TOKEN;
        }
    }
    float highest = -3.4028235e38f;
    for (unsigned id = own.first; id < own.end; id++) {
        highest = fmaxf(highest, own.logits[id]);
    }
    own.highest = group_max(highest);
    Prefix kept = first_tokens(own, params.top_k);
    if (params.top_p < 1.0f) {
        kept = first_mass(own, kept, params.top_p * mass_of(own, kept), false);
    }
    kept = heavy_tokens(own, kept, params.min_p);
    if (params.top_p < 1.0f) {
        const float mass = uniforms[row] * mass_of(own, kept);
        take_last(own, first_mass(own, kept, mass, true), ids + row);
    } else {
        draw_by_id(own, kept, uniforms[row], ids + row);
    }
}
