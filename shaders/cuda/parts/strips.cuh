// A key in shared memory, and its codes in a strip of 32 tokens.
//
// Stands on `key_source.cuh`; a kernel names GROUP before it includes this. Of its buffers:
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 3 | planes | [num_coders, num_planes] first channel, bits from bit 16 on, shift from bit 24 on | read |
// | 5 | codes | strips, as words; the bits of tokens that are not coded stay as they are | read, write |
//
// A plane has a cell of each token: a nibble, in the order of `score_planes`, or two bytes, token after token. Behind the
// planes come the tails of all tokens.

constexpr unsigned STRIP = 32;
constexpr unsigned MAX_CHANNELS = 256;

struct Params {
    unsigned head_dim;
    unsigned key_stride;
    unsigned is_half;
    unsigned num_planes;
    // Bits of a cell, 4 or 16: words of a plane, too.
    unsigned cell_bits;
    unsigned strip_words;
    // Bits of a code.
    unsigned bits;
    // Coordinates of a block of the rotation; 0 where there is none.
    unsigned block;
};

struct Token {
    // The words at which its key and its strip begin.
    unsigned key;
    unsigned strip;
    unsigned slot;
};

// The key, in the frame and the order of its coder.
__shared__ float x[MAX_CHANNELS];
__shared__ unsigned chosen[MAX_CHANNELS];

static __device__ Token token_at(const Params& params, const KeySpan& span, unsigned token)
{
    const unsigned slot = span.slot + token;
    const unsigned strip = span.place + slot / STRIP * params.strip_words;
    return {span.key + token * params.key_stride, strip, slot % STRIP};
}

// All threads; a barrier comes after.
static __device__ void load_key(const Params& params, const unsigned* key)
{
    for (unsigned i = threadIdx.x; i < params.head_dim; i += GROUP) {
        x[i] = key_value(key, params.is_half != 0, i);
    }
    __syncthreads();
}

// Bits of a word that no other thread changes, though others of the word it may.
static __device__ void put(unsigned* word, unsigned shift, unsigned mask, unsigned bits)
{
    const unsigned old = *(volatile unsigned*)word;
    atomicXor(word, (old ^ (bits << shift)) & (mask << shift));
}

// All threads, behind a barrier: what is `chosen`.
static __device__ void write_codes(const Params& params, const unsigned* planes, Token token, unsigned* codes)
{
    const unsigned slot = token.slot;
    unsigned word = token.strip + slot / 2;
    unsigned shift = slot % 2 * 16;
    if (params.cell_bits == 4) {
        word = token.strip + slot % 8 / 2;
        shift = slot % 2 * 16 + slot / 8 % 2 * 8 + slot / 16 * 4;
    }
    for (unsigned p = threadIdx.x; p < params.num_planes; p += GROUP) {
        const unsigned plane = planes[p];
        const unsigned first = plane & 0xffff;
        const unsigned bits = plane >> 16 & 0xff;
        unsigned cell = 0;
        for (unsigned i = 0; i < params.cell_bits / bits; i++) {
            cell |= (chosen[first + i] >> (plane >> 24) & ((1u << bits) - 1)) << (i * bits);
        }
        put(codes + word + p * params.cell_bits, shift, (1u << params.cell_bits) - 1, cell);
    }
}

// Number `number` of a token's tail, of 8 or 16 bits.
static __device__ void write_tail(const Params& params, Token token, unsigned number, unsigned width, unsigned bits,
                                  unsigned* codes)
{
    const unsigned at = (number * STRIP + token.slot) * width;
    const unsigned tails = token.strip + params.num_planes * params.cell_bits;
    put(codes + tails + at / 32, at % 32, (1u << width) - 1, bits);
}
