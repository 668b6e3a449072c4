// Scales in eighths of an octave.

static __device__ float eighth(unsigned i)
{
    switch (i) {
    case 0: return 1.0f;
    case 1: return 1.0905077f;
    case 2: return 1.1892071f;
    case 3: return 1.2968396f;
    case 4: return 1.4142135f;
    case 5: return 1.5422108f;
    case 6: return 1.6817929f;
    default: return 1.8340081f;
    }
}

// 2^((byte - 128) / 8), exact but for the rounding of the eighths.
static __device__ float octave_scale(unsigned byte)
{
    return eighth(byte & 7) * __uint_as_float((byte / 8 + 111) << 23);
}
