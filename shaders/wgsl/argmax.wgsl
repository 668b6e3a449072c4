// The token of the highest logit; of equal ones, that of the lowest id.
//
//   ids[r] = the least i with logits[r, i] = max over j of logits[r, j]
//
// Grid: a workgroup a row, workgroup_id.x.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 0 | params | Params | uniform |
// | 1 | logits | [num_rows, vocab_size] f32 | read |
// | 2 | ids | [num_rows] u32 | write |
//
// No logit above minus infinity gives NO_TOKEN; one that is NaN or infinite gives BAD_LOGIT.
// Accuracy: exact.

const GROUP: u32 = 256u;

struct Params {
    vocab_size: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;

// Key and id.
var<workgroup> bests: array<vec2<u32>, GROUP>;

fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(a, b, b.x > a.x || (b.x == a.x && b.y < a.y));
}

@compute @workgroup_size(GROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first = group.x * params.vocab_size;
    var best = vec2(KEY_IMPOSSIBLE, NO_TOKEN);
    for (var id = index; id < params.vocab_size; id += GROUP) {
        let key = key_of(logits[first + id]);
        if key > KEY_IMPOSSIBLE {
            best = better(best, vec2(key, id));
        }
    }
    bests[index] = best;
    workgroupBarrier();
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        if index < half {
            bests[index] = better(bests[index], bests[index + half]);
        }
        workgroupBarrier();
    }
    if index == 0u {
        ids[group.x] = select(bests[0].y, BAD_LOGIT, bests[0].x >= KEY_INFINITE);
    }
}
