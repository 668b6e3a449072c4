// Queries as the tables by which keys under product quantization are scored.
//
//   x[h, i] = sm_scale * scale[i] * q[h, order[i]], or sum over j of rotation[j, i] * that of j where there is one
//   table[h, g, n] = sum over the coordinates i of group g of x[h, i] * codebook[g, n, i]
//
// and a 0 for each head's offset, sum and bias, which these scores do not have.
//
// Grid: a workgroup GROUPS groups, workgroup_id.x, of a query head of the set, workgroup_id.y.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | kv_heads | [num_heads] u32, which KV heads of the layer the set has | read |
// | 2 | coordinates | [num_heads, head_dim] Coordinate | read |
// | 3 | rotation | [num_heads, head_dim, head_dim] f32; a word where there is none | read |
// | 4 | codebooks | [num_heads, num_groups, num_centroids, width] f16, two a word | read |
// | 5 | q | [num_qo_heads, head_dim] f32, post-RoPE | read |
// | 6 | tables | [num_heads, group_size, num_groups, num_centroids] f32 | write |
// | 7 | finals | [num_heads, group_size] four times 0, f32 | write |
//
// Requires groups of 2, 4 or 8 coordinates. No heads: no workgroups.
// Accuracy: f32 sums in the order of channels and coordinates.
// Source: HCAttention, arXiv 2507.19823, section 3.2; Ge et al., CVPR 2013, for the rotation.

const GROUP: u32 = 128u;

// Groups of coordinates of a workgroup, of at most 8 each.
const GROUPS: u32 = 4u;
const COORDINATES: u32 = 32u;

struct Params {
    head_dim: u32,
    group_size: u32,
    width: u32,
    num_centroids: u32,
    is_rotated: u32,
    sm_scale: f32,
}

struct Coordinate {
    order: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> kv_heads: array<u32>;
@group(0) @binding(2) var<storage, read> coordinates: array<Coordinate>;
@group(0) @binding(3) var<storage, read> rotation: array<f32>;
@group(0) @binding(4) var<storage, read> codebooks: array<u32>;
@group(0) @binding(5) var<storage, read> q: array<f32>;
@group(0) @binding(6) var<storage, read_write> tables: array<f32>;
@group(0) @binding(7) var<storage, read_write> finals: array<vec4<f32>>;

var<workgroup> x: array<f32, COORDINATES>;

// A channel of a query where the frame's scale has it.
fn scaled(head: u32, query: u32, i: u32) -> f32 {
    let coordinate = coordinates[head * params.head_dim + i];
    return params.sm_scale * q[query + coordinate.order] * coordinate.scale;
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y / params.group_size;
    let query = (kv_heads[head] * params.group_size + group.y % params.group_size) * params.head_dim;
    let first_group = group.x * GROUPS;
    let num_groups = params.head_dim / params.width;
    let count = min(GROUPS, num_groups - first_group);
    if index < count * params.width {
        let i = first_group * params.width + index;
        var coordinate = 0.0;
        if params.is_rotated != 0u {
            let columns = head * params.head_dim * params.head_dim + i;
            for (var j = 0u; j < params.head_dim; j++) {
                coordinate += rotation[columns + j * params.head_dim] * scaled(head, query, j);
            }
        } else {
            coordinate = scaled(head, query, i);
        }
        x[index] = coordinate;
    }
    workgroupBarrier();
    let centroids = (head * num_groups + first_group) * params.num_centroids;
    let table = (group.y * num_groups + first_group) * params.num_centroids;
    for (var at = index; at < count * params.num_centroids; at += GROUP) {
        let own = at / params.num_centroids * params.width;
        let centroid = (centroids + at) * params.width / 2u;
        var product = 0.0;
        for (var pair = 0u; pair < params.width / 2u; pair++) {
            let values = unpack2x16float(codebooks[centroid + pair]);
            product += x[own + 2u * pair] * values.x + x[own + 2u * pair + 1u] * values.y;
        }
        tables[table + at] = product;
    }
    if group.x == 0u && index == 0u {
        finals[group.y] = vec4(0.0);
    }
}
