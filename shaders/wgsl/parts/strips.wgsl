// A key in workgroup memory, and its codes in a strip of 32 tokens.
//
// Interface: `Params`, the bindings 0, 3 and 5, `x`, `chosen`, `token_at`, `load_key`, `write_codes`, `write_tail`. Stands
// on `key_source`; a kernel names GROUP.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 3 | planes | [num_coders, num_planes] first channel, bits from bit 16 on, shift from bit 24 on | read |
// | 5 | codes | strips, as words; the bits of tokens that are not coded stay as they are | read, write |
//
// A plane has a cell of each token: a nibble, in the order of `score_planes`, or two bytes, token after token. Behind the
// planes come the tails of all tokens.

const STRIP: u32 = 32u;
const MAX_CHANNELS: u32 = 256u;

struct Params {
    head_dim: u32,
    key_stride: u32,
    is_half: u32,
    num_planes: u32,
    // Bits of a cell, 4 or 16: words of a plane, too.
    cell_bits: u32,
    strip_words: u32,
    // Bits of a code.
    bits: u32,
    // Coordinates of a block of the rotation; 0 where there is none.
    block: u32,
}

struct Token {
    // The words at which its key and its strip begin.
    key: u32,
    strip: u32,
    slot: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> planes: array<u32>;
@group(0) @binding(5) var<storage, read_write> codes: array<atomic<u32>>;

// The key, in the frame and the order of its coder.
var<workgroup> x: array<f32, MAX_CHANNELS>;
var<workgroup> chosen: array<u32, MAX_CHANNELS>;

fn token_at(span: KeySpan, token: u32) -> Token {
    let slot = span.slot + token;
    let strip = span.place + slot / STRIP * params.strip_words;
    return Token(span.key + token * params.key_stride, strip, slot % STRIP);
}

// All threads; a barrier comes after.
fn load_key(token: Token, index: u32) {
    for (var i = index; i < params.head_dim; i += GROUP) {
        x[i] = key_value(token.key, i);
    }
    workgroupBarrier();
}

// Bits of a word that no other thread changes, though others of the word it may.
fn put(word: u32, shift: u32, mask: u32, bits: u32) {
    let old = atomicLoad(&codes[word]);
    atomicXor(&codes[word], (old ^ (bits << shift)) & (mask << shift));
}

// All threads, behind a barrier: what is `chosen`.
fn write_codes(coder: u32, token: Token, index: u32) {
    let slot = token.slot;
    var word = token.strip + slot / 2u;
    var shift = slot % 2u * 16u;
    if params.cell_bits == 4u {
        word = token.strip + slot % 8u / 2u;
        shift = slot % 2u * 16u + slot / 8u % 2u * 8u + slot / 16u * 4u;
    }
    for (var p = index; p < params.num_planes; p += GROUP) {
        let plane = planes[coder * params.num_planes + p];
        let first = plane & 0xffffu;
        let bits = plane >> 16u & 0xffu;
        var cell = 0u;
        for (var i = 0u; i < params.cell_bits / bits; i++) {
            cell |= (chosen[first + i] >> (plane >> 24u) & ((1u << bits) - 1u)) << (i * bits);
        }
        put(word + p * params.cell_bits, shift, (1u << params.cell_bits) - 1u, cell);
    }
}

// Number `number` of a token's tail, of 8 or 16 bits.
fn write_tail(token: Token, number: u32, width: u32, bits: u32) {
    let at = (number * STRIP + token.slot) * width;
    let tails = token.strip + params.num_planes * params.cell_bits;
    put(tails + at / 32u, at % 32u, (1u << width) - 1u, bits);
}
