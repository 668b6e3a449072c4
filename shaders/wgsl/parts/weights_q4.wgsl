// Weights as 4-bit integers from 0 to 15 with a scale and an offset for every 32: weight = scale * code + offset.
//
// Interface as in `weights_f16`.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 1 | weight_codes | [rows, num_blocks, 4] words of eight nibbles, the first in the lowest | read |
// | 2 | weight_scales | [rows, num_blocks] pairs of f16, the scale in the lower half, the offset in the upper | read |

@group(0) @binding(1) var<storage, read> weight_codes: array<u32>;
@group(0) @binding(2) var<storage, read> weight_scales: array<u32>;

fn weights_of(block: u32) -> array<vec4<f32>, 8> {
    let scale_offset = unpack2x16float(weight_scales[block]);
    var weights: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let word = weight_codes[block * 4u + i / 2u] >> (16u * (i % 2u));
        let codes = vec4<f32>(vec4(word, word >> 4u, word >> 8u, word >> 12u) & vec4(15u));
        weights[i] = scale_offset.x * codes + vec4(scale_offset.y);
    }
    return weights;
}
