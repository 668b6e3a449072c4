// Affine integers with scale and zero in f16: the zero from below, the scale from above, so that no error is above half a
// step, and what was decoded is encoded to itself.
//
// Stands on `halves.cuh`. Products are rounded before they are added to, as on the host.

// So often at most are scale and zero found again from what they decode the ends to.
constexpr unsigned MAX_ROUNDS = 256;

struct Affine {
    // Bits of f16.
    unsigned scale;
    unsigned zero;
};

static __device__ bool reaches(float zero, unsigned scale, float last_code, float high)
{
    return zero + __fmul_rn(half_value(scale), last_code) >= high;
}

static __device__ Affine affine_between(float low, float high, float last_code)
{
    const unsigned zero_bits = half_below(low);
    const float zero = half_value(zero_bits);
    unsigned scale = half_of(fmaxf(high - zero, 0.0f) / last_code);
    while (scale < 0x7bff && !reaches(zero, scale, last_code, high)) {
        scale++;
    }
    while (scale > 0 && reaches(zero, scale - 1, last_code, high)) {
        scale--;
    }
    return {scale, zero_bits};
}

// Halves are rounded up.
static __device__ unsigned affine_code(Affine affine, float value, float last_code)
{
    if (affine.scale == 0) {
        return 0;
    }
    const float steps = (value - half_value(affine.zero)) / half_value(affine.scale);
    return (unsigned)fminf(fmaxf(roundf(steps), 0.0f), last_code);
}

static __device__ float affine_value(Affine affine, unsigned code)
{
    return half_value(affine.zero) + __fmul_rn(half_value(affine.scale), (float)code);
}

// Of values from `low` to `high`.
static __device__ Affine affine_of(float low, float high, float last_code)
{
    Affine affine = affine_between(low, high, last_code);
    for (unsigned i = 0; i < MAX_ROUNDS; i++) {
        const float decoded_low = affine_value(affine, affine_code(affine, low, last_code));
        const float decoded_high = affine_value(affine, affine_code(affine, high, last_code));
        const Affine next = affine_between(decoded_low, decoded_high, last_code);
        const bool rises = half_value(next.zero) > half_value(affine.zero);
        if (!rises && half_value(next.scale) >= half_value(affine.scale)) {
            break;
        }
        affine = next;
    }
    return affine;
}
