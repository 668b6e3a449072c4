// Weights in half precision.
//
// Interface, the same in every `weights_` part: the bindings 1 and 2 and `weights_of`. Weights come in blocks of 32
// columns; block b of row r is number r * num_blocks + b.
//
// | binding | what | shape, type | access |
// | --- | --- | --- | --- |
// | 1 | weight_codes | [rows, num_blocks, 16] pairs of f16, the first in the lower half | read |
// | 2 | weight_scales | not looked at; a word | read |

@group(0) @binding(1) var<storage, read> weight_codes: array<u32>;
@group(0) @binding(2) var<storage, read> weight_scales: array<u32>;

// The 32 weights of a block.
fn weights_of(block: u32) -> array<vec4<f32>, 8> {
    var weights: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let low = unpack2x16float(weight_codes[block * 16u + 2u * i]);
        let high = unpack2x16float(weight_codes[block * 16u + 2u * i + 1u]);
        weights[i] = vec4(low, high);
    }
    return weights;
}
