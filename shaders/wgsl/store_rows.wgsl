// Exact keys and values into pages, in half precision.
//
//   rows[place of t, c] = f16(k[t, kv, c]),   rows[place of t + page_tokens * head_dim, c] = f16(v[t, kv, c])
//
// for each row that the list names: a token t of a KV head.
//
// Grid: a workgroup a row, workgroup_id.x + workgroup_id.y * num_workgroups.x; a thread a pair of channels.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | slots | [num_slots] Slot | read |
// | 2 | k | [tokens, num_kv_heads, head_dim] f32, as pairs | read |
// | 3 | v | [tokens, num_kv_heads, head_dim] f32, as pairs | read |
// | 4 | rows | pages: keys [page_tokens, head_dim], then values of the same shape, f16, two a word | write |
//
// Requires an even head_dim. No slots: no workgroups. What f16 cannot hold is clamped to +-65,504, as on the host.
// Accuracy: that of f16, rounded as the device rounds.

const GROUP: u32 = 64u;
const MOST: f32 = 65504.0;

struct Params {
    num_slots: u32,
    num_kv_heads: u32,
    pairs: u32,
    page_tokens: u32,
}

struct Slot {
    token: u32,
    kv_head: u32,
    // Of the key, in words.
    place: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> slots: array<Slot>;
@group(0) @binding(2) var<storage, read> k: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> rows: array<u32>;

fn half_of(pair: vec2<f32>) -> u32 {
    return pack2x16float(clamp(pair, vec2(-MOST), vec2(MOST)));
}

@compute @workgroup_size(GROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let number = group.x + group.y * groups.x;
    if number >= params.num_slots {
        return;
    }
    let slot = slots[number];
    let source = (slot.token * params.num_kv_heads + slot.kv_head) * params.pairs;
    let to_value = params.page_tokens * params.pairs;
    for (var i = index; i < params.pairs; i += GROUP) {
        rows[slot.place + i] = half_of(k[source + i]);
        rows[slot.place + to_value + i] = half_of(v[source + i]);
    }
}
