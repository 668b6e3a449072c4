// Scale and zero of a token in a strip of 32.
//
// Stands on `half.cuh`.

constexpr unsigned STRIP = 32;

constexpr unsigned TAIL_SCALE = 1;
constexpr unsigned TAIL_SCALE_ZERO = 2;
constexpr unsigned TAIL_EXPONENT = 3;

// Scale and zero of the token in a slot of the strip whose tails begin there.
static __device__ float2 tail_of(unsigned kind, const unsigned* tails, unsigned slot)
{
    if (kind == TAIL_SCALE || kind == TAIL_SCALE_ZERO) {
        const float2 scales = half_pair(tails[slot / 2]);
        float zero = 0.0f;
        if (kind == TAIL_SCALE_ZERO) {
            const float2 zeros = half_pair(tails[STRIP / 2 + slot / 2]);
            zero = slot % 2 == 1 ? zeros.y : zeros.x;
        }
        return make_float2(slot % 2 == 1 ? scales.y : scales.x, zero);
    }
    if (kind == TAIL_EXPONENT) {
        const unsigned byte = (tails[slot / 4] >> (8 * (slot % 4))) & 255;
        return make_float2(exp2f(((float)byte - 128.0f) / 8.0f), 0.0f);
    }
    return make_float2(1.0f, 0.0f);
}
