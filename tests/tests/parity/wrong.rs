//! Kernels that are wrong on purpose are seen to be: what goes wrong in kernels, done to a right one.

use heterokv_attn::HeadShape;
use heterokv_gpu::{Access, Bound, Commands, Gpu, KernelSource};
use heterokv_shaders::{ATTEND_ROWS, Variant};
use heterokv_testkit::Inputs;

use crate::attention::Rows;
use crate::devices::places_or_skip;
use crate::sites::{Output, upload};

/// Tokens of the one part of each KV head: several tiles, the last not full.
const PART_TOKENS: usize = 150;

#[test]
fn wrong_kernels_are_seen() {
    let places = places_or_skip();
    let shape = HeadShape::new(6, 2, 64).unwrap();
    let part_tokens = vec![vec![PART_TOKENS]; 2];
    let mut inputs = Inputs::new(1100);
    let rows = Rows::random(&mut inputs, shape, 16, &part_tokens);
    let (states, _) = rows.states(&part_tokens);
    let right = ATTEND_ROWS.wgsl(Variant::default());
    let replaced = |from: &str, to: &str| {
        let wrong = right.replace(from, to);
        assert_ne!(wrong, right, "{from} is in the kernel");
        wrong
    };
    let wrong = [
        (
            "a swapped head",
            replaced(
                "params.group_size + head)",
                "params.group_size + (params.group_size - 1u - head))",
            ),
        ),
        (
            "a token off by one",
            replaced("let token = first + lane.index;", "let token = first + lane.index + 1u;"),
        ),
        ("a skipped barrier", replaced("workgroupBarrier();", "")),
        (
            "a value of the next channel",
            replaced("to_value + pair]", "to_value + (pair + 1u) % pairs]"),
        ),
        ("a scale forgotten", replaced("params.sm_scale * q", "q")),
    ];
    // The first of each adapter: what is wrong here is the same on all.
    for place in places.iter().filter(|place| place.name.ends_with("Workgroup")) {
        let gpu = place.device.gpu();
        let q = &rows.q[..];
        assert!(states.accepts(&attend(gpu, &rows, &right, q)), "{}", place.name);
        for (what, wgsl) in &wrong {
            assert!(!states.accepts(&attend(gpu, &rows, wgsl, q)), "{what}, on {}", place.name);
        }
        // A buffer that still holds the queries of the step before.
        let stale = inputs.clone().gaussian_rows(shape.num_qo_heads, shape.head_dim, 1.5);
        assert!(!states.accepts(&attend(gpu, &rows, &right, &stale)), "stale, on {}", place.name);
    }
}

/// The outputs of the kernel as it is written.
fn attend(gpu: &Gpu, rows: &Rows, wgsl: &str, q: &[f32]) -> Vec<f32> {
    let bindings = ATTEND_ROWS.bindings.iter().map(|access| match access {
        heterokv_shaders::Access::Read => Access::Read,
        heterokv_shaders::Access::Write => Access::Write,
    });
    let source = KernelSource {
        name: "attend_rows",
        wgsl,
        bindings: &bindings.collect::<Vec<_>>(),
        constants: &[],
    };
    let kernel = gpu.kernel(&source).unwrap();
    let HeadShape { head_dim, sm_scale, .. } = rows.shape;
    let group_size = rows.shape.group_size();
    let page_tokens = rows.page_tokens as u32;
    let params = [head_dim as u32, group_size as u32, page_tokens, sm_scale.to_bits(), 1];
    let num_states = rows.parts.len() * group_size;
    let [parts, pages, memory, q] = [
        upload(gpu, &rows.parts),
        upload(gpu, &rows.pages),
        upload(gpu, &rows.memory),
        upload(gpu, q),
    ];
    let (out, lse) = (Output::new(gpu, num_states * head_dim), Output::new(gpu, num_states));
    let inputs = [&parts, &pages, &memory, &q].map(Bound::all);
    let buffers = [&inputs[..], &[out.bound(), lse.bound()]].concat();
    let mut commands = Commands::new(gpu);
    let grid = [rows.parts.len() as u32, group_size as u32, 1];
    commands.dispatch(&kernel, &params, &buffers, grid).unwrap();
    commands.submit().unwrap();
    out.read(gpu, "attend_rows")
}
