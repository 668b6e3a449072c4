//! Every kernel in CUDA C++ through NVIDIA's compiler, which needs no GPU, down to machine code.
//!
//! `cargo xtask fetch --nvrtc` installs it into the target folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use heterokv_shaders::{CudaKernel, SHADERS};

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

#[test]
fn every_kernel_compiles() {
    let Some(library) = library() else { return };
    let kernels: Vec<CudaKernel> = SHADERS.iter().filter_map(|shader| shader.cuda()).collect();
    assert!(kernels.len() > 10);
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

/// What is wrong with a kernel is told with its file and line, of a part too.
#[test]
fn a_text_that_is_wrong_is_refused() {
    let Some(library) = library() else { return };
    let kernel = heterokv_shaders::MERGE_STATES.cuda().unwrap();
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
