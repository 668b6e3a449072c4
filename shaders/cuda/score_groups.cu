// Scores of keys under product quantization of more than 16 centroids, by tables of each query.
//
//   score[h, t] = sum over groups g of table[h, g, code[t, g]]
//
// A token's codes are a row of row_bytes, packed from the lowest bit up, and rows follow each other without gaps.
//
// Grid: a block a span, blockIdx.x, and HEADS query heads of its group, blockIdx.y; a thread a token. The
// tables of as many groups and heads as fit are in shared memory at a time: of all HEADS up to 512 centroids, of fewer
// beyond.
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | by value |
// | 1 | spans | [num_spans] Span | read |
// | 2 | codes | rows, as words | read |
// | 3 | tables | [num_qo_heads, num_groups, 2^code_bits] f32 | read |
// | 4 | scores | [num_qo_heads, score_stride] f32: token t of a span at first_token + t of each head's row | write |
//
// A span is of at most GROUP tokens, the first of which begins with a word. A span of no tokens writes nothing. Requires
// codes of 5 to 12 bits.
// Accuracy: f32 sums in the order of the groups.
// Source: HCAttention, arXiv 2507.19823, section 3.2.

constexpr unsigned GROUP = 128;
constexpr unsigned HEADS = 8;

// Entries of tables in shared memory.
constexpr unsigned ENTRIES = 4096;

struct Params {
    unsigned group_size;
    unsigned num_groups;
    unsigned code_bits;
    unsigned row_bytes;
    unsigned score_stride;
};

struct Span {
    unsigned kv_head;
    // Of its first token, in words.
    unsigned place;
    unsigned num_tokens;
    unsigned first_token;
};

// The code of so many bits that begins at a bit.
static __device__ unsigned code_at(const unsigned* codes, unsigned bit, unsigned code_bits)
{
    const unsigned* words = codes + bit / 32;
    const unsigned shift = bit % 32;
    unsigned packed = words[0] >> shift;
    if (shift + code_bits > 32) {
        packed |= words[1] << (32 - shift);
    }
    return packed & ((1u << code_bits) - 1);
}

extern "C" __global__ void __launch_bounds__(GROUP)
score_groups(Params params, const Span* __restrict__ spans, const unsigned* __restrict__ codes,
             const float* __restrict__ tables, float* __restrict__ scores)
{
    // [groups, 2^code_bits, heads]: the heads of an entry lie side by side.
    __shared__ float tile[ENTRIES];
    const unsigned index = threadIdx.x;
    const Span span = spans[blockIdx.x];
    const unsigned first_head = blockIdx.y * HEADS;
    const unsigned heads = min(HEADS, params.group_size - first_head);
    const unsigned first_qo = span.kv_head * params.group_size + first_head;
    const bool is_inside = index < span.num_tokens;
    const unsigned tile_heads = min(HEADS, ENTRIES >> params.code_bits);
    const unsigned tile_groups = (ENTRIES >> params.code_bits) / tile_heads;
    float sums[HEADS] = {};
    for (unsigned lead = 0; lead < heads; lead += tile_heads) {
        for (unsigned first = 0; first < params.num_groups; first += tile_groups) {
            const unsigned count = min(tile_groups, params.num_groups - first);
            for (unsigned at = index; at < (count << params.code_bits) * tile_heads; at += GROUP) {
                const unsigned head = lead + at % tile_heads;
                const unsigned of_head = ((first_qo + head) * params.num_groups + first) << params.code_bits;
                tile[at] = head < heads ? tables[of_head + at / tile_heads] : 0.0f;
            }
            __syncthreads();
            if (is_inside) {
                for (unsigned g = 0; g < count; g++) {
                    const unsigned bit = 8 * index * params.row_bytes + (first + g) * params.code_bits;
                    const unsigned code = code_at(codes + span.place, bit, params.code_bits);
                    const unsigned entry = ((g << params.code_bits) + code) * tile_heads;
                    // Over all heads, so that the sums stay in registers.
                    for (unsigned h = 0; h < HEADS; h++) {
                        if (h - lead < tile_heads) {
                            sums[h] += tile[entry + h - lead];
                        }
                    }
                }
            }
            __syncthreads();
        }
    }
    if (is_inside) {
        for (unsigned h = 0; h < heads; h++) {
            scores[(first_qo + h) * params.score_stride + span.first_token + index] = sums[h];
        }
    }
}
