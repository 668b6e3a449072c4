//! Twins are those of kernels, and say of themselves what the kernels say.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::{Access, SHADERS, Variant};

fn names(folder: &str, ending: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(folder).expect("it is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name());
    names
        .filter_map(|name| name.to_string_lossy().strip_suffix(ending).map(str::to_owned))
        .collect()
}

/// All twins, in every form of keys where they leave it open.
fn twins() -> impl Iterator<Item = (&'static Shader, CudaKernel)> {
    SHADERS.into_iter().flat_map(|shader| {
        let forms = if shader.has_keys() { &KeyForm::ALL[..] } else { &KeyForm::ALL[..1] };
        forms.iter().filter_map(move |&keys| {
            Some((shader, shader.cuda(Variant { keys, ..Variant::default() })?))
        })
    })
}

/// What stands between the parentheses of the entry point.
fn arguments(kernel: &CudaKernel) -> Vec<String> {
    let after = kernel.text.split_once("extern \"C\" __global__").expect("an entry point").1;
    let (name, after) = after.split_once(')').expect("its bounds").1.split_once('(').expect("it");
    assert_eq!(name.trim(), kernel.name);
    let inside = after.split_once(')').expect("its end").0;
    inside.split(',').map(|argument| argument.trim().to_owned()).collect()
}

#[test]
fn every_kernel_has_a_twin_or_is_a_declared_gap() {
    let listed: BTreeSet<String> = TWINS.iter().map(|twin| twin.name.to_owned()).collect();
    assert_eq!(names("cuda", ".cu"), listed);
    let parts: BTreeSet<String> = PARTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let found = names("cuda/parts", "").into_iter().map(|name| format!("parts/{name}"));
    assert_eq!(found.collect::<BTreeSet<_>>(), parts);
    let with: BTreeSet<&str> = twins().map(|(shader, _)| shader.name).collect();
    let without: Vec<&str> =
        SHADERS.iter().map(|shader| shader.name).filter(|name| !with.contains(name)).collect();
    assert_eq!(without, CUDA_GAPS);
    assert_eq!(with.len(), listed.len(), "every twin is that of a kernel");
    let texts: BTreeSet<String> = twins().map(|(_, kernel)| kernel.text).collect();
    assert_eq!(texts.len(), listed.len() + KeyForm::ALL.len() - 1, "forms of keys differ");
}

#[test]
fn arguments_are_the_parameters_and_the_bindings() {
    for (shader, kernel) in twins() {
        let arguments = arguments(&kernel);
        assert_eq!(arguments[0], "Params params", "{}", kernel.name);
        let accesses: Vec<Access> = arguments[1..]
            .iter()
            .map(|argument| {
                assert!(argument.contains("* __restrict__ "), "{}: {argument}", kernel.name);
                if argument.starts_with("const ") { Access::Read } else { Access::Write }
            })
            .collect();
        assert_eq!(accesses, shader.bindings, "{}", kernel.name);
    }
}

/// Workgroups of the shader are blocks of the twin: of as many threads, which are whole warps.
#[test]
fn blocks_are_workgroups() {
    for (shader, kernel) in twins() {
        let text = shader.wgsl(Variant::default());
        let module = naga::front::wgsl::parse_str(&text).expect("it is valid");
        let [entry] = &module.entry_points[..] else { panic!("{}: one entry", shader.name) };
        assert_eq!(entry.workgroup_size, [kernel.threads, 1, 1], "{}", shader.name);
        assert_eq!(kernel.threads % 32, 0, "{}", shader.name);
        let group = format!("constexpr unsigned GROUP = {};", kernel.threads);
        assert!(kernel.text.contains(&group), "{}: {group}", shader.name);
        assert!(kernel.text.contains("__launch_bounds__(GROUP)"), "{}", shader.name);
        assert!(!kernel.text.contains("#include"), "{}: a part is unknown", shader.name);
    }
}

/// The formula and what is said of accuracy, sources and preconditions are those of the kernel, word for word.
#[test]
fn heads_are_those_of_the_kernels() {
    let head = |text: &str| -> Vec<String> {
        let lines = text.lines().take_while(|line| line.starts_with("//"));
        let words = lines.map(|line| {
            line.replace("num_workgroups", "gridDim")
                .replace("workgroup_id", "blockIdx")
                .replace("workgroup memory", "shared memory")
                .replace("workgroup", "block")
                .replace("| uniform |", "| by value |")
                .replace("| binding |", "| argument |")
        });
        words.collect()
    };
    for (shader, kernel) in twins() {
        assert_eq!(head(shader.body), head(&kernel.text), "{}", shader.name);
        assert!(head(&kernel.text).len() > 10, "{}", shader.name);
    }
}
