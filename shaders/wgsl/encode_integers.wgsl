// Keys as affine integers per token, in strips.
//
//   code[t, c] = round((x[t, c] - zero[t]) / scale[t]),   x = R key, or the key itself
//
// with zero and scale as in `affine`: what `int...-token` and `rot-int...-token` store.
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
//
// No tokens, no work. Requires finite keys and a head_dim of at most 256.
// Accuracy: scale, zero and codes are those of the host but where the last bit of a quotient, or of a product and a sum
// that the device makes one, decides; errors are at most half a step, but for those bits.
// Source: docs/methods/hca.md; QuaRot, arXiv 2404.00456, for the rotation.

const GROUP: u32 = 64u;

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let span = spans[group.x];
    if group.y >= span.num_tokens {
        return;
    }
    let token = token_at(span, group.y);
    load_key(token, lane.index);
    if params.block > 0u {
        rotate(span.coder, lane.index);
    }
    var own_low = 3.4028235e38;
    var own_high = -3.4028235e38;
    for (var i = lane.index; i < params.head_dim; i += GROUP) {
        own_low = min(own_low, x[i]);
        own_high = max(own_high, x[i]);
    }
    let low = -group_max(-own_low, lane);
    let high = group_max(own_high, lane);
    let last_code = f32((1u << params.bits) - 1u);
    let affine = affine_of(low, high, last_code);
    for (var i = lane.index; i < params.head_dim; i += GROUP) {
        chosen[i] = affine_code(affine, x[i], last_code);
    }
    workgroupBarrier();
    write_codes(span.coder, token, lane.index);
    if lane.index == 0u {
        write_tail(token, 0u, 16u, affine.scale);
        write_tail(token, 1u, 16u, affine.zero);
    }
}
