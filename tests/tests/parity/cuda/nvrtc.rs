//! Every kernel in CUDA C++ through NVIDIA's compiler, which needs no GPU, down to machine code.
//!
//! `cargo xtask fetch --nvrtc` installs it into the target folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use heterokv_shaders::{
    CudaKernel, ENCODE_ALLOCATED, ENCODE_INTEGERS, ENCODE_LEVELS, KeyForm, SHADERS, Variant,
};

use super::Wanted;

/// Compute capabilities: those of the A100 and the H100.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// The folder of its library; none where it is not installed.
fn library() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let folder = target.join("nvrtc/nvidia/cuda_nvrtc/lib");
    if folder.exists() {
        return Some(folder);
    }
    Wanted::here().miss("NVRTC is not installed; run cargo xtask fetch --nvrtc");
    None
}

/// PTX, or what the compiler says.
fn compile(library: &Path, kernel: &CudaKernel, architecture: &str) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/compile.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(library).args([architecture, kernel.name]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("python3 can be started");
    child.stdin.take().unwrap().write_all(kernel.text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// All twins, in every form of keys where they leave it open.
fn kernels() -> Vec<CudaKernel> {
    let forms = SHADERS.iter().flat_map(|shader| {
        let forms = if shader.has_keys() { &KeyForm::ALL[..] } else { &KeyForm::ALL[..1] };
        let variants = forms.iter().map(|&keys| Variant { keys, ..Variant::default() });
        variants.filter_map(|variant| shader.cuda(variant))
    });
    forms.collect()
}

#[test]
fn every_kernel_compiles() {
    let Some(library) = library() else { return };
    let kernels = kernels();
    assert!(kernels.len() > 20);
    for architecture in ARCHITECTURES {
        for kernel in &kernels {
            let ptx = compile(&library, kernel, architecture);
            let ptx =
                ptx.unwrap_or_else(|error| panic!("{}, {architecture}: {error}", kernel.name));
            let has = |what: &str| ptx.lines().any(|line| line.trim_start().starts_with(what));
            for what in [
                format!(".target {architecture}"),
                format!(".visible .entry {}(", kernel.name),
                format!(".maxntid {}", kernel.threads),
            ] {
                assert!(has(&what), "{}, {architecture}: no `{what}` in\n{ptx}", kernel.name);
            }
        }
    }
    println!("{} kernels for {}", kernels.len(), ARCHITECTURES.join(" and "));
}

/// Where codes are found, a product is rounded before it is added to, as on the host: nothing is fused but what makes up
/// a logarithm. `encode_channels` fuses products by powers of two besides, which are exact.
#[test]
fn products_that_make_codes_are_rounded() {
    let Some(library) = library() else { return };
    let num_fused = |kernel: &CudaKernel| {
        compile(&library, kernel, ARCHITECTURES[0]).unwrap().matches("fma.rn.f32").count()
    };
    let text = "extern \"C\" __global__ void logarithm(float* x) { *x = log2f(*x); }".to_owned();
    let of_logarithm = num_fused(&CudaKernel { name: "logarithm", threads: 1, text });
    assert!(of_logarithm > 0);
    for (shader, num_logarithms, product) in [
        (ENCODE_INTEGERS, 0, "__fmul_rn(half_value(scale), last_code)"),
        (ENCODE_LEVELS, 0, "__fmul_rn(x[i], level)"),
        (ENCODE_ALLOCATED, 1, "__fmul_rn(x[i], inverse)"),
    ] {
        let kernel = shader.cuda(Variant::default()).unwrap();
        assert_eq!(num_fused(&kernel), num_logarithms * of_logarithm, "{}", kernel.name);
        // It would be fused if it could.
        let factors = product.replace("__fmul_rn", "").replace(", ", " * ");
        let text = kernel.text.replacen(product, &factors, 1);
        assert!(num_fused(&CudaKernel { text, ..kernel }) > num_logarithms * of_logarithm);
    }
}

/// What is wrong with a kernel is told with its file and line, of a part too.
#[test]
fn a_text_that_is_wrong_is_refused() {
    let Some(library) = library() else { return };
    let kernel = heterokv_shaders::MERGE_STATES.cuda(Variant::default()).unwrap();
    for (from, to, place) in [
        ("float sum = 0.0f;\n        for", "float sum = nothing;\n        for", "merge_states.cu("),
        ("float x)\n", "float y)\n", "parts/reduce.cuh("),
    ] {
        let text = kernel.text.replacen(from, to, 1);
        assert_ne!(text, kernel.text);
        let wrong = CudaKernel { text, ..kernel.clone() };
        let error = compile(&library, &wrong, ARCHITECTURES[0]).unwrap_err();
        assert!(error.contains(place), "{error}");
    }
}
