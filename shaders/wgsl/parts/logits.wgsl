// Logits as integers that are ordered as they are, and what is said instead of a token's id.

// The key of minus infinity, which no token has that can be taken, and of infinity, which none can have.
const KEY_IMPOSSIBLE: u32 = 0x007fffffu;
const KEY_INFINITE: u32 = 0xff800000u;

// No token can be taken; a logit is NaN or infinite.
const NO_TOKEN: u32 = 0xffffffffu;
const BAD_LOGIT: u32 = 0xfffffffeu;

// The two zeros are one, and NaN is above all.
fn key_of(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0xffffffffu;
    }
    return select(bits | 0x80000000u, ~bits, bits > 0x80000000u);
}

fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}
