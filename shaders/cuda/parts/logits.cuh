// Logits as integers that are ordered as they are, and what is said instead of a token's id.

// The key of minus infinity, which no token has that can be taken, and of infinity, which none can have.
constexpr unsigned KEY_IMPOSSIBLE = 0x007fffff;
constexpr unsigned KEY_INFINITE = 0xff800000;

// No token can be taken; a logit is NaN or infinite.
constexpr unsigned NO_TOKEN = 0xffffffff;
constexpr unsigned BAD_LOGIT = 0xfffffffe;

// The two zeros are one, and NaN is above all.
static __device__ unsigned key_of(float logit)
{
    const unsigned bits = __float_as_uint(logit);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0xffffffff;
    }
    return bits > 0x80000000 ? ~bits : bits | 0x80000000;
}

static __device__ float logit_of(unsigned key)
{
    return __uint_as_float(key >= 0x80000000 ? key & 0x7fffffff : ~key);
}
