// Queries in the frame of a key format, which codes channel by channel are met by; where codes lie in nibble planes, the
// tables by which these are scored.
//
//   x[h, i] = sm_scale * scale[i] * q[h, order[i]], transformed by a Walsh-Hadamard matrix in blocks where there is one
//   table[h, p, n] = sum over the channels i of plane p of x[h, i] * value(part of nibble n that is i's)
//   offset[h] = sum over i of x[h, i] * offset[i],   sum[h] = sum over i of x[h, i],
//   bias[h] = sm_scale * sum over c of q[h, c] * centre[c]
//
// A plane holds 4 / bits neighbouring channels from `first` on, the first in the lowest bits. A part of a nibble, shifted
// to its place in its channel's code, stands for itself, or for an entry of a codebook. Without planes, x itself is what is
// written.
//
// Grid: a workgroup a query head of the set, workgroup_id.x.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | kv_heads | [num_heads] u32, which KV heads of the layer the set has | read |
// | 2 | channels | [num_heads, head_dim] Channel | read |
// | 3 | planes | [num_heads, num_planes] u32: first + bits << 16 + shift << 24; a word where there are none | read |
// | 4 | levels | [16] f32, the codebook | read |
// | 5 | q | [num_qo_heads, head_dim] f32, post-RoPE | read |
// | 6 | tables | [num_heads, group_size, num_planes, 16] f32; [num_heads, group_size, head_dim] without planes | write |
// | 7 | finals | [num_heads, group_size] offset, sum, bias and 0, f32 | write |
//
// Requires a head_dim of at most 256. No heads: no workgroups.
// Accuracy: f32.
// Source: docs/methods/hca.md; Ashkboos et al. 2024, arXiv 2404.00456, for the transform.

const GROUP: u32 = 64u;
const MAX_HEAD_DIM: u32 = 256u;

struct Params {
    head_dim: u32,
    group_size: u32,
    num_planes: u32,
    // Channels of a block of the transform; 1 where there is none.
    block: u32,
    has_levels: u32,
    sm_scale: f32,
}

struct Channel {
    order: u32,
    scale: f32,
    // Of the channel before it was put in order.
    centre: f32,
    offset: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> kv_heads: array<u32>;
@group(0) @binding(2) var<storage, read> channels: array<Channel>;
@group(0) @binding(3) var<storage, read> planes: array<u32>;
@group(0) @binding(4) var<storage, read> levels: array<f32>;
@group(0) @binding(5) var<storage, read> q: array<f32>;
@group(0) @binding(6) var<storage, read_write> tables: array<f32>;
@group(0) @binding(7) var<storage, read_write> finals: array<vec4<f32>>;

var<workgroup> x: array<f32, MAX_HEAD_DIM>;

fn value_of(code: u32) -> f32 {
    if params.has_levels != 0u {
        return levels[code];
    }
    return f32(code);
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let head = group.x / params.group_size;
    let query = (kv_heads[head] * params.group_size + group.x % params.group_size) * params.head_dim;
    var own_bias = 0.0;
    for (var i = lane.index; i < params.head_dim; i += GROUP) {
        let channel = channels[head * params.head_dim + i];
        x[i] = params.sm_scale * q[query + channel.order] * channel.scale;
        own_bias += params.sm_scale * q[query + i] * channel.centre;
    }
    workgroupBarrier();
    for (var half = 1u; half < params.block; half *= 2u) {
        for (var pair = lane.index; pair < params.head_dim / 2u; pair += GROUP) {
            let low = pair / half * 2u * half + pair % half;
            let a = x[low];
            let b = x[low + half];
            x[low] = a + b;
            x[low + half] = a - b;
        }
        workgroupBarrier();
    }
    var own_offset = 0.0;
    var own_sum = 0.0;
    for (var i = lane.index; i < params.head_dim; i += GROUP) {
        own_offset += x[i] * channels[head * params.head_dim + i].offset;
        own_sum += x[i];
    }
    let offset = group_sum(own_offset, lane);
    let sum = group_sum(own_sum, lane);
    let bias = group_sum(own_bias, lane);
    if lane.index == 0u {
        finals[group.x] = vec4(offset, sum, bias, 0.0);
    }
    if params.num_planes == 0u {
        for (var i = lane.index; i < params.head_dim; i += GROUP) {
            tables[group.x * params.head_dim + i] = x[i];
        }
    }
    for (var at = lane.index; at < params.num_planes * 16u; at += GROUP) {
        let plane = planes[head * params.num_planes + at / 16u];
        let nibble = at % 16u;
        let first = plane & 0xffffu;
        let bits = plane >> 16u & 0xffu;
        let shift = plane >> 24u;
        let mask = (1u << bits) - 1u;
        var product = 0.0;
        for (var i = 0u; i < 4u / bits; i++) {
            product += x[first + i] * value_of((nibble >> (i * bits) & mask) << shift);
        }
        tables[group.x * params.num_planes * 16u + at] = product;
    }
}
