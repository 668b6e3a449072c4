// Keys that are to be coded, and where their codes go.
//
// Interface: the bindings 1 and 2, `KeySpan` and `key_value`. The `params` of a kernel have `key_stride`, the words from a
// token's key to the next one's, and `is_half`.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 1 | spans | [num_spans] KeySpan | read |
// | 2 | keys | rows of f32, or of f16, two a word, post-RoPE | read |

struct KeySpan {
    // Whose tables.
    coder: u32,
    // Of the key of its first token, in words.
    key: u32,
    // Of the strip or block in which its first token lies, in words.
    place: u32,
    // Of its first token in that strip.
    slot: u32,
    num_tokens: u32,
}

@group(0) @binding(1) var<storage, read> spans: array<KeySpan>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;

// A channel of the key that begins at a word.
fn key_value(first: u32, channel: u32) -> f32 {
    if params.is_half != 0u {
        let pair = unpack2x16float(keys[first + channel / 2u]);
        return select(pair.x, pair.y, channel % 2u == 1u);
    }
    return bitcast<f32>(keys[first + channel]);
}
