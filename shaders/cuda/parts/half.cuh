// Half precision, which comes from a header that the run-time compiler does not have.
//
// On a device it is one instruction; elsewhere `host_half` of whoever plays the device.

static __device__ float half_value(unsigned short bits)
{
#ifdef __CUDACC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return host_half(bits);
#endif
}

// The two of a word, the lower half first.
static __device__ float2 half_pair(unsigned word)
{
    return make_float2(half_value(word & 0xffff), half_value(word >> 16));
}
