// Rotated keys as numbers of the levels of a codebook, with a scale per token, in strips.
//
//   x = R (key - centre),   code[t, c] = the level nearest to x[t, c] / rms(x[t])
//   scale[t] = sum over c of x[t, c] * level[code] / sum over c of level[code]^2
//
// Grid: a workgroup a token: of a span, workgroup_id.x, number workgroup_id.y.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | spans | [num_spans] KeySpan, see `key_source` | read |
// | 2 | keys | f32 or f16, see `key_source` | read |
// | 3 | planes | see `strips` | read |
// | 4 | turns | see `rotation` | read |
// | 5 | codes | strips, see `strips` | read, write |
// | 6 | levels | [2^bits] f32, rising | read |
//
// No tokens, no work. Requires finite keys and a head_dim of at most 256.
// Accuracy: sums in the order of the host, by every thread; codes and scales are the host's but where the last bits of a
// root, a quotient, or a product and a sum that the device makes one, decide.
// Source: TurboQuant, arXiv 2504.19874; Max 1960.

const GROUP: u32 = 64u;

@group(0) @binding(6) var<storage, read> levels: array<f32>;

// Levels as they are, of values over their root mean square.
fn nearest_level(value: f32) -> u32 {
    let last = (1u << params.bits) - 1u;
    var level = 0u;
    while level < last && value > 0.5 * (levels[level] + levels[level + 1u]) {
        level++;
    }
    return level;
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let span = spans[group.x];
    if group.y >= span.num_tokens {
        return;
    }
    let token = token_at(span, group.y);
    load_key(token, index);
    rotate(span.coder, index);
    var energy = 0.0;
    for (var i = 0u; i < params.head_dim; i++) {
        energy += x[i] * x[i];
    }
    let rms = sqrt(energy / f32(params.head_dim));
    let inverse = select(0.0, 1.0 / rms, rms > 0.0);
    for (var i = index; i < params.head_dim; i += GROUP) {
        chosen[i] = nearest_level(x[i] * inverse);
    }
    workgroupBarrier();
    write_codes(span.coder, token, index);
    if index == 0u {
        var along = 0.0;
        var norm = 0.0;
        for (var i = 0u; i < params.head_dim; i++) {
            let level = levels[chosen[i]];
            along += x[i] * level;
            norm += level * level;
        }
        write_tail(token, 0u, 16u, half_of(along / norm));
    }
}
