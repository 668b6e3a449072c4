// Keys that are to be coded, and where their codes go.
//
// Stands on `half.cuh`. The buffers of a kernel begin with:
//
// | argument | what | shape, type | access |
// | --- | --- | --- | --- |
// | 1 | spans | [num_spans] KeySpan | read |
// | 2 | keys | rows of f32, or of f16, two a word, post-RoPE | read |

struct KeySpan {
    // Whose tables.
    unsigned coder;
    // Of the key of its first token, in words.
    unsigned key;
    // Of the strip or block in which its first token lies, in words.
    unsigned place;
    // Of its first token in that strip.
    unsigned slot;
    unsigned num_tokens;
};

// A channel of a key.
static __device__ float key_value(const unsigned* key, bool is_half, unsigned channel)
{
    if (is_half) {
        const float2 pair = half_pair(key[channel / 2]);
        return channel % 2 == 1 ? pair.y : pair.x;
    }
    return __uint_as_float(key[channel]);
}
