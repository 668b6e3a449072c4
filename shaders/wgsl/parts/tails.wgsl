// Scale and zero of a token in a strip of 32.
//
// Interface: STRIP and `tail_of`. A kernel has the words of strips in `codes`, and `params.tail`.

const STRIP: u32 = 32u;

const TAIL_NONE: u32 = 0u;
const TAIL_SCALE: u32 = 1u;
const TAIL_SCALE_ZERO: u32 = 2u;
const TAIL_EXPONENT: u32 = 3u;

// Scale and zero of the token in a slot of the strip whose tails begin at a word.
fn tail_of(tails: u32, slot: u32) -> vec2<f32> {
    switch params.tail {
        case TAIL_SCALE, TAIL_SCALE_ZERO: {
            let scales = unpack2x16float(codes[tails + slot / 2u]);
            var zero = 0.0;
            if params.tail == TAIL_SCALE_ZERO {
                let zeros = unpack2x16float(codes[tails + STRIP / 2u + slot / 2u]);
                zero = select(zeros.x, zeros.y, slot % 2u == 1u);
            }
            return vec2(select(scales.x, scales.y, slot % 2u == 1u), zero);
        }
        case TAIL_EXPONENT: {
            let byte = (codes[tails + slot / 4u] >> (8u * (slot % 4u))) & 255u;
            return vec2(exp2((f32(byte) - 128.0) / 8.0), 0.0);
        }
        default: {
            return vec2(1.0, 0.0);
        }
    }
}
