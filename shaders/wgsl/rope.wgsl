// Rotary position embedding, in place, in the half-split pairing.
//
//   (x[t, h, i], x[t, h, i + half]) turned by the angle of token t and pair i, i < half = head_dim / 2
//
// Angles come as cosines and sines that the host has worked out in f64 and scaled: every kind of frequency scaling is in
// them, and a position of millions loses nothing.
//
// Grid: a thread a pair, of all heads and tokens: workgroup_id.x + workgroup_id.y * num_workgroups.x times GROUP.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | turns | [tokens, half] pairs of cosine and sine, f32 | read |
// | 2 | x | [tokens, num_heads, head_dim] f32 | read, write |
//
// Requires an even head_dim. No tokens: no workgroups.
// Accuracy: two roundings of f32 a channel.
// Source: Su et al. 2021, arXiv 2104.09864, section 3.2.

const GROUP: u32 = 64u;

struct Params {
    tokens: u32,
    num_heads: u32,
    half: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let pair = (group.x + group.y * groups.x) * GROUP + index;
    if pair >= params.tokens * params.num_heads * params.half {
        return;
    }
    let head = pair / params.half;
    let i = pair % params.half;
    let turn = turns[head / params.num_heads * params.half + i];
    let at = head * 2u * params.half + i;
    let low = x[at];
    let high = x[at + params.half];
    x[at] = low * turn.x - high * turn.y;
    x[at + params.half] = high * turn.x + low * turn.y;
}
