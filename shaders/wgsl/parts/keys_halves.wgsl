// Keys in f16, a row a token.
//
// Interface, the same in every `keys_` part: `KeyPlace`, `place_of`, `values_of`, `tail_at`. A kernel has the words of keys
// in `codes`, and `Params` as `score_keys` has them. A block is a row.

struct KeyPlace {
    row: u32,
}

// Of a token of those that begin with the block at a word.
fn place_of(place: u32, token: u32) -> KeyPlace {
    return KeyPlace(place + token * params.block_words);
}

// What the codes of four neighbouring channels stand for.
fn values_of(at: KeyPlace, channel: u32) -> vec4<f32> {
    let word = at.row + channel / 2u;
    return vec4(unpack2x16float(codes[word]), unpack2x16float(codes[word + 1u]));
}

// Scale and zero of the token.
fn tail_at(at: KeyPlace) -> vec2<f32> {
    return vec2(1.0, 0.0);
}
