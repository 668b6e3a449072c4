// Keys as affine integers per channel over a block of tokens: what `int...-channel/G` stores.
//
//   code[t, c] = round((key[t, c] - zero[c]) / scale[c])
//
// A block is the scale and zero of every channel, then the codes of its tokens. Of 8 and 6 bits, scale and zero are as in
// `affine`, a word together. Of fewer bits they are a window of two bytes, see `windows`: of those that the ends of the
// values fill, with steps around the range's share, and the one of whole multiples that reaches them, the one of the
// least squared error.
//
// Codes of 4 bits lie in strips of 32 tokens, a plane of nibbles for each channel; those of 8 in strips of two bytes of
// every token for each pair of channels; others one after the other, token by token, from the lowest bit up.
//
// Grid: a workgroup a span, workgroup_id.x, which is a whole block; a thread a channel, then a word of codes.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | spans | [num_spans] KeySpan, see `key_source`; coder, slot and num_tokens are not looked at | read |
// | 2 | keys | f32 or f16, see `key_source` | read |
// | 3 | codes | blocks, as words | write |
//
// No spans, no work. Requires finite keys, and a head_dim of at most 256, in eights.
// Accuracy: scale, zero and codes are those of the host but where the last bits of a quotient, a logarithm, or a product
// and a sum that the device makes one, decide; halves go to the even code of a window, up otherwise.
// Source: KIVI, arXiv 2402.02750; docs/methods/hca.md.

const GROUP: u32 = 64u;
const MAX_CHANNELS: u32 = 256u;
const STRIP: u32 = 32u;

// Widest codes of a window.
const MAX_WINDOW_BITS: u32 = 4u;

// Steps from zero to the largest value under the smallest step that reaches it.
const REACH: f32 = 59.48;

// Logarithms beyond are of nothing.
const MAX_EIGHTHS: f32 = 10000.0;

struct Params {
    head_dim: u32,
    key_stride: u32,
    is_half: u32,
    bits: u32,
    group_tokens: u32,
    num_code_words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;

// The stored scale and zero of each channel.
var<workgroup> headers: array<u32, MAX_CHANNELS>;

// Steps above the range's share that a search goes down.
fn search_depth() -> i32 {
    return select(select(3, 5, params.bits == 3u), 9, params.bits < 3u);
}

fn eighths_of(value: f32) -> f32 {
    return select(-MAX_EIGHTHS, clamp(8.0 * log2(value), -MAX_EIGHTHS, MAX_EIGHTHS), value > 0.0);
}

// Where a value lies from the first value of a window, were there codes beyond its ends.
fn place_in(window: Window, value: f32, last_code: f32) -> f32 {
    return round(value / step_of(window.exponent) - first_of(window, last_code));
}

// In the order of the host: eight sums, then theirs.
fn squared_error(window: Window, first: u32, channel: u32, last_code: f32) -> f32 {
    let step = step_of(window.exponent);
    let from_zero = first_of(window, last_code);
    let inverse = 1.0 / step;
    var sums: array<f32, 8>;
    for (var t = 0u; t < params.group_tokens; t++) {
        let value = key_value(first + t * params.key_stride, channel);
        let code = clamp(round(value * inverse - from_zero), 0.0, last_code);
        let error = value - step * (from_zero + code);
        sums[t % 8u] += error * error;
    }
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        sum += sums[i];
    }
    return sum;
}

// The window of the least error for values from `low` to `high`.
fn window_of(low: f32, high: f32, first: u32, channel: u32, last_code: f32) -> Window {
    let smallest = i32(ceil(eighths_of(max(abs(low), abs(high)) / REACH)));
    // But for the rounding of the logarithm.
    let filled = i32(floor(eighths_of((high - low) / last_code) + 1e-3));
    let bottom = filled - search_depth();
    let reaching = clamp(smallest, -128, 127);
    let middle = 2.0 * floor(0.5 * (low + high) / step_of(reaching)) + 1.0;
    var best = Window(reaching, i32(clamp(middle, -127.0, 127.0)));
    var least = 3.4028235e38;
    // A step far below all others leaves most of the values outside.
    if smallest >= bottom {
        least = squared_error(best, first, channel, last_code);
    }
    let end = clamp(bottom, -128, 127);
    for (var exponent = clamp(filled + 1, -128, 127); exponent >= end; exponent--) {
        let centre = round((low + high) / step_of(exponent));
        if centre < -128.0 || centre > 127.0 {
            continue;
        }
        let window = Window(exponent, i32(centre));
        let is_filled = place_in(window, low, last_code) <= 0.0 && place_in(window, high, last_code) >= last_code;
        if is_filled {
            let error = squared_error(window, first, channel, last_code);
            if error < least {
                least = error;
                best = window;
            }
        }
    }
    return best;
}

fn header_of(first: u32, channel: u32, last_code: f32) -> u32 {
    var low = 3.4028235e38;
    var high = -3.4028235e38;
    for (var t = 0u; t < params.group_tokens; t++) {
        let value = key_value(first + t * params.key_stride, channel);
        low = min(low, value);
        high = max(high, value);
    }
    if params.bits <= MAX_WINDOW_BITS {
        return window_bits(window_of(low, high, first, channel, last_code));
    }
    let affine = affine_of(low, high, last_code);
    return affine.scale | affine.zero << 16u;
}

fn code_of(first: u32, token: u32, channel: u32, last_code: f32) -> u32 {
    let value = key_value(first + token * params.key_stride, channel);
    let header = headers[channel];
    if params.bits <= MAX_WINDOW_BITS {
        return u32(clamp(place_in(window_of_bits(header), value, last_code), 0.0, last_code));
    }
    return affine_code(Affine(header & 0xffffu, header >> 16u), value, last_code);
}

// A word of the codes of a block.
fn code_word(first: u32, word: u32, last_code: f32) -> u32 {
    var packed = 0u;
    if params.bits == 4u {
        let plane_words = STRIP / 8u;
        let strip = word / (params.head_dim * plane_words);
        let channel = word / plane_words % params.head_dim;
        for (var nibble = 0u; nibble < 8u; nibble++) {
            let byte = nibble / 2u;
            let slot = word % plane_words * 2u + byte / 2u + byte % 2u * 8u + nibble % 2u * 16u;
            packed |= code_of(first, strip * STRIP + slot, channel, last_code) << (4u * nibble);
        }
    } else if params.bits == 8u {
        let pair_words = STRIP / 2u;
        let strip = word / (params.head_dim / 2u * pair_words);
        let channel = word / pair_words % (params.head_dim / 2u) * 2u;
        for (var byte = 0u; byte < 4u; byte++) {
            let slot = word % pair_words * 2u + byte / 2u;
            let code = code_of(first, strip * STRIP + slot, channel + byte % 2u, last_code);
            packed |= code << (8u * byte);
        }
    } else {
        let begin = 32u * word;
        for (var i = begin / params.bits; i * params.bits < begin + 32u; i++) {
            let code = code_of(first, i / params.head_dim, i % params.head_dim, last_code);
            let bit = i * params.bits;
            packed |= select(code << (bit - begin), code >> (begin - bit), bit < begin);
        }
    }
    return packed;
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let span = spans[group.x];
    let last_code = f32((1u << params.bits) - 1u);
    for (var channel = index; channel < params.head_dim; channel += GROUP) {
        headers[channel] = header_of(span.key, channel, last_code);
    }
    workgroupBarrier();
    // Headers of two bytes, two a word.
    let is_window = params.bits <= MAX_WINDOW_BITS;
    let num_header_words = select(params.head_dim, params.head_dim / 2u, is_window);
    for (var word = index; word < num_header_words; word += GROUP) {
        if is_window {
            codes[span.place + word] = headers[2u * word] | headers[2u * word + 1u] << 16u;
        } else {
            codes[span.place + word] = headers[word];
        }
    }
    let place = span.place + num_header_words;
    for (var word = index; word < params.num_code_words; word += GROUP) {
        codes[place + word] = code_word(span.key, word, last_code);
    }
}
