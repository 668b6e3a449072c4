// Minus infinity, which comes from a header that the run-time compiler does not have: the lse of an empty state.
static __device__ float minus_infinity()
{
    return __uint_as_float(0xff800000);
}
