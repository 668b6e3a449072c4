// Keys as bytes in strips of 32 tokens: for each pair of channels two bytes of every token, then the tails of all.
//
// Interface as in `keys_halves`; stands on `tails`. A block is a strip.

struct KeyPlace {
    strip: u32,
    slot: u32,
}

fn place_of(place: u32, token: u32) -> KeyPlace {
    return KeyPlace(place + token / STRIP * params.block_words, token % STRIP);
}

fn values_of(at: KeyPlace, channel: u32) -> vec4<f32> {
    let word = at.strip + channel / 2u * (STRIP / 2u) + at.slot / 2u;
    let pairs = vec2(codes[word], codes[word + STRIP / 2u]) >> vec2(at.slot % 2u * 16u);
    return vec4<f32>(vec4(pairs.x, pairs.x >> 8u, pairs.y, pairs.y >> 8u) & vec4(255u));
}

fn tail_at(at: KeyPlace) -> vec2<f32> {
    return tail_of(at.strip + params.head_dim * (STRIP / 4u), at.slot);
}
