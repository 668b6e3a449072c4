// Weights as 8-bit integers with a scale and an offset for every 32: weight = scale * code + offset.
//
// Interface as in `weights_f16`.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 1 | weight_codes | [rows, num_blocks, 8] words of four signed bytes, the first in the lowest | read |
// | 2 | weight_scales | [rows, num_blocks] pairs of f16, the scale in the lower half, the offset in the upper | read |

@group(0) @binding(1) var<storage, read> weight_codes: array<u32>;
@group(0) @binding(2) var<storage, read> weight_scales: array<u32>;

fn weights_of(block: u32) -> array<vec4<f32>, 8> {
    let scale_offset = unpack2x16float(weight_scales[block]);
    var weights: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let codes = vec4<f32>(unpack4xI8(weight_codes[block * 8u + i]));
        weights[i] = scale_offset.x * codes + vec4(scale_offset.y);
    }
    return weights;
}
