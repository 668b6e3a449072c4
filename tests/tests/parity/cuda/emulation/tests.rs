//! What the emulation is there to see, it sees.

use heterokv_shaders::ROPE;

use super::*;

/// Threads of a block, two warps.
const THREADS: u32 = 64;

/// Runs a body over `x`, which is read, and as many words `y`, which are written; `n` is their number.
fn run(emulator: &Emulator, body: &str, x: &[u32]) -> Result<Vec<u32>, String> {
    let text = format!(
        "struct Params {{ unsigned n; }};\n\
         extern \"C\" __global__ void __launch_bounds__({THREADS})\n\
         probe(Params params, const unsigned* __restrict__ x, unsigned* __restrict__ y)\n\
         {{\n    const unsigned index = threadIdx.x;\n    const unsigned n = params.n;\n    {body}\n}}\n"
    );
    let kernel = CudaKernel { name: "probe", threads: THREADS, text };
    let launch = Launch {
        // Whose buffers are one that is read and one that is written, like these.
        shader: &ROPE,
        variant: Variant::default(),
        params: vec![x.len() as u32],
        buffers: vec![x.to_vec(), vec![7; x.len()]],
        grid: [1, 1, 1],
    };
    Ok(emulator.execute(&kernel, &launch)?.remove(0))
}

#[test]
fn exchanges_votes_and_barriers_do_what_they_do_on_a_device() {
    let Some(emulator) = sites().first() else { return };
    let x: Vec<u32> = (0..THREADS).map(|i| i * i).collect();
    let at = |body: &str| run(emulator, body, &x).unwrap();
    let all = "0xffffffff";
    let across = at(&format!("y[index] = __shfl_xor_sync({all}, x[index], 5);"));
    let up = at(&format!("y[index] = __shfl_up_sync({all}, x[index], 3);"));
    let from = at(&format!("y[index] = __shfl_sync({all}, x[index], 9);"));
    let votes = at(&format!("y[index] = __ballot_sync({all}, index % 3 == 0);"));
    let shared = at("__shared__ unsigned slots[64]; slots[index] = x[index]; __syncthreads();\n\
                     y[index] = slots[63 - index];");
    for i in 0..THREADS as usize {
        let (warp, lane) = (i / 32 * 32, i % 32);
        assert_eq!(across[i], x[warp + (lane ^ 5)]);
        assert_eq!(up[i], x[if lane >= 3 { i - 3 } else { i }]);
        assert_eq!(from[i], x[warp + 9]);
        assert_eq!(votes[i], (0..32).map(|l| u32::from((warp + l) % 3 == 0) << l).sum::<u32>());
        assert_eq!(shared[i], x[63 - i]);
    }
    // Half a warp by itself.
    let half = at("if (index % 32 < 16) { y[index] = __shfl_xor_sync(0xffff, x[index], 1); }");
    assert_eq!((half[0], half[17]), (x[1], 7));
}

#[test]
fn halves_are_read_as_they_are_written() {
    let Some(emulator) = sites().first() else { return };
    let bits: Vec<u32> = (0..=u32::from(u16::MAX)).collect();
    let body =
        "for (unsigned i = index; i < n; i += 64) { y[i] = __float_as_uint(host_half(x[i])); }";
    let read = run(emulator, body, &bits).unwrap();
    for (&bits, &read) in bits.iter().zip(&read) {
        let expected = half::f16::from_bits(bits as u16).to_f32();
        let same = expected.to_bits() == read || expected.is_nan() && f32::from_bits(read).is_nan();
        assert!(same, "{bits:04x}: {read:08x} is not {expected}");
    }
}

#[test]
fn what_a_device_might_let_pass_is_an_error() {
    let Some(emulator) = sites().first() else { return };
    let x: Vec<u32> = (0..THREADS).collect();
    for (body, expected) in [
        (
            "__shared__ unsigned slots[64]; slots[index] = x[index]; y[index] = slots[63 - index];",
            "depend on the order",
        ),
        ("y[0] = x[index];", "depend on the order"),
        ("if (index < 40) { __syncthreads(); } y[index] = 1;", "has ended while others wait"),
        (
            "if (index < 32) { __syncthreads(); } else {\n__syncthreads(); } y[index] = 1;",
            "wait at different barriers",
        ),
        (
            "if (index % 32 < 20) { y[index] = __shfl_xor_sync(0xffffffff, index, 1); }",
            "does not take part",
        ),
        ("if (index % 32 < 20) { y[index] = __shfl_xor_sync(0xf, index, 1); }", "does not name it"),
        ("if (index % 32 < 2) { y[index] = __shfl_xor_sync(0x3, index, 2); }", "gives nothing"),
        ("y[index] = x[index + 1];", "outside of its buffers"),
        ("y[index - 1] = x[index];", "outside of its buffers"),
        ("((unsigned*)x)[index] = 1;", "only reads"),
    ] {
        let error = run(emulator, body, &x).expect_err(body);
        assert!(error.contains(expected), "{body}: {error}");
    }
    let unset = run(emulator, "__shared__ unsigned slots[64]; y[index] = slots[index];", &x);
    assert!(unset.unwrap().iter().all(|&bits| f32::from_bits(bits).is_nan()));
}

#[test]
fn what_does_not_fit_the_kernel_is_an_error() {
    let Some(emulator) = sites().first() else { return };
    let kernel = heterokv_shaders::MERGE_STATES.cuda(Variant::default()).unwrap();
    let launch = |params: &[u32], num_buffers| Launch {
        shader: &heterokv_shaders::MERGE_STATES,
        variant: Variant::default(),
        params: params.to_vec(),
        buffers: vec![vec![0]; num_buffers],
        grid: [1, 1, 1],
    };
    let error = emulator.execute(&kernel, &launch(&[64, 1, 1], 5)).unwrap_err();
    assert!(error.contains("another size"), "{error}");
    let error = emulator.execute(&kernel, &launch(&[64, 1], 4)).unwrap_err();
    assert!(error.contains("another number of buffers"), "{error}");
}
