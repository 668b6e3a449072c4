// Keys as integers with a scale and zero for each channel of a block, in the layout of `encode_channels`.
//
// Interface as in `keys_halves`; stands on `windows`. A block has `params.group_tokens`.

const STRIP: u32 = 32u;

// Widest codes of a window.
const MAX_WINDOW_BITS: u32 = 4u;

struct KeyPlace {
    block: u32,
    token: u32,
}

fn place_of(place: u32, token: u32) -> KeyPlace {
    let block = token / params.group_tokens;
    return KeyPlace(place + block * params.block_words, token - block * params.group_tokens);
}

fn is_window() -> bool {
    return params.bits <= MAX_WINDOW_BITS;
}

// Scale and zero of a channel.
fn line_of(block: u32, channel: u32) -> vec2<f32> {
    if is_window() {
        let last_code = f32((1u << params.bits) - 1u);
        let window = window_of_bits(codes[block + channel / 2u] >> (16u * (channel % 2u)) & 0xffffu);
        let step = step_of(window.exponent);
        return vec2(step, step * first_of(window, last_code));
    }
    return unpack2x16float(codes[block + channel]);
}

fn codes_of(at: KeyPlace, channel: u32) -> vec4<u32> {
    let first = at.block + select(params.head_dim, params.head_dim / 2u, is_window());
    let strip = first + at.token / STRIP * (params.head_dim * params.bits);
    let slot = at.token % STRIP;
    if params.bits == 4u {
        let word = strip + channel * 4u + slot % 8u / 2u;
        let shift = slot % 2u * 16u + slot / 8u % 2u * 8u + slot / 16u * 4u;
        return vec4(codes[word], codes[word + 4u], codes[word + 8u], codes[word + 12u]) >> vec4(shift) & vec4(15u);
    }
    if params.bits == 8u {
        let word = strip + channel * 8u + slot / 2u;
        let pairs = vec2(codes[word], codes[word + 16u]) >> vec2(slot % 2u * 16u);
        return vec4(pairs.x, pairs.x >> 8u, pairs.y, pairs.y >> 8u) & vec4(255u);
    }
    let bit = (at.token * params.head_dim + channel) * params.bits;
    let word = first + bit / 32u;
    let shift = bit % 32u;
    var packed = codes[word] >> shift;
    if shift + 4u * params.bits > 32u {
        packed |= codes[word + 1u] << (32u - shift);
    }
    let width = params.bits;
    return vec4(packed, packed >> width, packed >> (2u * width), packed >> (3u * width)) & vec4((1u << width) - 1u);
}

fn values_of(at: KeyPlace, channel: u32) -> vec4<f32> {
    let chosen = vec4<f32>(codes_of(at, channel));
    let a = line_of(at.block, channel);
    let b = line_of(at.block, channel + 1u);
    let c = line_of(at.block, channel + 2u);
    let d = line_of(at.block, channel + 3u);
    return vec4(a.x, b.x, c.x, d.x) * chosen + vec4(a.y, b.y, c.y, d.y);
}

fn tail_at(at: KeyPlace) -> vec2<f32> {
    return vec2(1.0, 0.0);
}
