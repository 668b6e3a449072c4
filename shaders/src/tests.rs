//! Every variant of every shader, by naga, without a GPU.

use std::collections::{BTreeSet, HashSet};

use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::*;

/// What the smallest WebGPU device has.
const MIN_WORKGROUP_BYTES: u32 = 16_384;
const MIN_WORKGROUP_THREADS: u32 = 256;
const MIN_STORAGE_BUFFERS: usize = 8;

fn variants(shader: &Shader) -> Vec<Variant> {
    let reductions = [Reduction::Workgroup, Reduction::Subgroup, Reduction::Emulated(8)];
    let mut variants = Vec::new();
    for reduction in reductions {
        for weights in WeightForm::ALL {
            for keys in KeyForm::ALL {
                for arithmetic in Arithmetic::ALL {
                    let variant = Variant { reduction, weights, keys, arithmetic };
                    variants.push(shader.narrowed(variant));
                }
            }
        }
    }
    let mut seen = HashSet::new();
    variants.retain(|variant| seen.insert(*variant));
    variants
}

fn parse(shader: &Shader, variant: Variant) -> naga::Module {
    let text = shader.wgsl(variant);
    naga::front::wgsl::parse_str(&text).unwrap_or_else(|error| {
        panic!("{} {variant:?}: {}", shader.name, error.emit_to_string(&text))
    })
}

fn validate(module: &naga::Module) -> Result<naga::valid::ModuleInfo, String> {
    validate_in(module, Arithmetic::F32)
}

fn validate_in(
    module: &naga::Module,
    arithmetic: Arithmetic,
) -> Result<naga::valid::ModuleInfo, String> {
    // Conversions of f16 in storage are a matter of course; computing with them has to be asked for.
    let mut capabilities = Capabilities::SUBGROUP
        | Capabilities::SUBGROUP_BARRIER
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, arithmetic == Arithmetic::F16);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.validate(module).map_err(|error| format!("{error:?}"))
}

#[test]
fn every_variant_is_valid() {
    let mut num_variants = 0;
    for shader in SHADERS {
        for variant in variants(shader) {
            let valid = validate_in(&parse(shader, variant), variant.arithmetic);
            assert!(valid.is_ok(), "{} {variant:?}: {}", shader.name, valid.unwrap_err());
            num_variants += 1;
        }
    }
    assert!(num_variants > SHADERS.len());
}

#[test]
fn bindings_are_those_of_the_text() {
    for shader in SHADERS {
        for variant in variants(shader) {
            let module = parse(shader, variant);
            let mut bound: Vec<(u32, Option<Access>)> = Vec::new();
            for (_, global) in module.global_variables.iter() {
                let Some(binding) = &global.binding else { continue };
                assert_eq!(binding.group, 0, "{}", shader.name);
                bound.push((
                    binding.binding,
                    match global.space {
                        naga::AddressSpace::Uniform => None,
                        naga::AddressSpace::Storage { access } => {
                            let writes = access.contains(naga::StorageAccess::STORE);
                            Some(if writes { Access::Write } else { Access::Read })
                        }
                        other => panic!("{}: {other:?}", shader.name),
                    },
                ));
            }
            bound.sort_by_key(|(binding, _)| *binding);
            let expected = std::iter::once(None).chain(shader.bindings.iter().copied().map(Some));
            let expected: Vec<(u32, Option<Access>)> = (0..).zip(expected).collect();
            assert_eq!(bound, expected, "{} {variant:?}", shader.name);
            assert!(shader.bindings.len() <= MIN_STORAGE_BUFFERS, "{}", shader.name);
        }
    }
}

#[test]
fn every_variant_fits_the_smallest_device() {
    for shader in SHADERS {
        for variant in variants(shader) {
            let module = parse(shader, variant);
            let [entry] = &module.entry_points[..] else { panic!("{}: one entry", shader.name) };
            assert_eq!((entry.name.as_str(), entry.stage), ("main", naga::ShaderStage::Compute));
            let threads: u32 = entry.workgroup_size.iter().product();
            assert!(threads <= MIN_WORKGROUP_THREADS, "{}: {threads}", shader.name);
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).expect("it is valid");
            let shared = module.global_variables.iter().map(|(_, global)| global);
            let shared = shared.filter(|global| global.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|global| layouter[global.ty].size).sum();
            assert!(bytes <= MIN_WORKGROUP_BYTES, "{}: {bytes}", shader.name);
        }
    }
}

#[test]
fn every_file_is_a_shader_or_a_part_and_has_a_head() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("wgsl");
    let names = |folder: &std::path::Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder)
            .expect("it is there")
            .map(|entry| entry.expect("it can be read"));
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter_map(|name| name.strip_suffix(".wgsl").map(str::to_owned)).collect()
    };
    let listed: BTreeSet<String> = SHADERS.iter().map(|shader| shader.name.to_owned()).collect();
    assert_eq!(names(&folder), listed);
    for shader in SHADERS {
        for word in ["// Grid:", "// | binding |", "// Accuracy:"] {
            assert!(shader.body.contains(word), "{} has no `{word}`", shader.name);
        }
        let empty_case = ["No ", "no "].iter().any(|word| shader.body.contains(word));
        assert!(empty_case, "{} says nothing of the empty case", shader.name);
    }
}

/// What is wrong is seen: an unknown name, an access wider than what is declared, a type that does not fit.
#[test]
fn a_broken_shader_is_no_shader() {
    let good = RMS_NORM.wgsl(Variant::default());
    assert!(validate(&parse(&RMS_NORM, Variant::default())).is_ok());
    for (from, to) in
        [("group_sum(squares", "group_product(squares"), ("squares = 0.0", "squares = 0u")]
    {
        let broken = good.replacen(from, to, 1);
        assert_ne!(broken, good);
        let valid =
            naga::front::wgsl::parse_str(&broken).is_ok_and(|module| validate(&module).is_ok());
        assert!(!valid, "{from}");
    }
    let stored = good.replacen("let mean =", "weight[0] = 1.0;\n    let mean =", 1);
    let valid = naga::front::wgsl::parse_str(&stored).is_ok_and(|module| validate(&module).is_ok());
    assert!(!valid, "a binding that is only read is written");
}
