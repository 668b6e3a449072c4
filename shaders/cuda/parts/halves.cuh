// Numbers as bits of f16, rounded by integers: the same on every device and on the host.
//
// Stands on `half.cuh`.

// The nearest f16, ties to even, held at the ends of its range.
static __device__ unsigned half_of(float value)
{
    const unsigned bits = __float_as_uint(fminf(fmaxf(value, -65504.0f), 65504.0f));
    const unsigned sign = bits >> 16 & 0x8000;
    const unsigned size = bits & 0x7fffffff;
    // Below the least normal value, whole multiples of 2^-24.
    if (size < 0x38800000) {
        return sign | (unsigned)rintf(__uint_as_float(size) * 16777216.0f);
    }
    return sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - 0x1c000);
}

// The largest f16 that is not above a value; the least of all where there is none.
static __device__ unsigned half_below(float value)
{
    const unsigned nearest = half_of(value);
    if (half_value(nearest) <= value || nearest == 0xfbff) {
        return nearest;
    }
    // Below zero comes the least in size of those with a sign.
    if ((nearest & 0x7fff) == 0) {
        return 0x8001;
    }
    return nearest >= 0x8000 ? nearest + 1 : nearest - 1;
}
