//! Structs of Rust beside those of the shaders that read them.
//!
//! Each module of operations lists its structs by [`twins!`](crate::device::reflection::twins); the test below holds
//! names, types, order and places of their fields against what naga reads in the shaders, and that no struct of a buffer
//! has been left out.

use heterokv_shaders::Shader;

/// A struct that shaders read from a buffer, as Rust has it.
pub(super) struct Twin {
    /// What it is called in the shaders.
    pub(super) name: &'static str,
    /// The shaders that have it.
    pub(super) shaders: Vec<&'static Shader>,
    pub(super) num_bytes: usize,
    pub(super) fields: Vec<Field>,
}

/// One of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) start: usize,
    pub(super) kind: &'static str,
}

/// What a field can be.
pub(super) trait Kind {
    /// What WGSL calls it.
    const NAME: &'static str;
}

impl Kind for u32 {
    const NAME: &'static str = "u32";
}

impl Kind for f32 {
    const NAME: &'static str = "f32";
}

/// The kind of the field that a function picks.
pub(super) fn kind_of<S, K: Kind>(_: fn(&S) -> &K) -> &'static str {
    K::NAME
}

/// `NAME of SHADER, SHADER = RustStruct { field, field };` for each struct: all of its fields, or it does not compile.
macro_rules! twins {
    ($($name:ident of $($shader:ident),+ = $rust:ident { $($field:ident),+ };)+) => {
        vec![$({
            let _ = |$rust { $($field: _),+ }: $rust| ();
            $crate::device::reflection::Twin {
                name: stringify!($name),
                shaders: vec![$(&heterokv_shaders::$shader),+],
                num_bytes: size_of::<$rust>(),
                fields: vec![$($crate::device::reflection::Field {
                    name: stringify!($field).to_owned(),
                    start: std::mem::offset_of!($rust, $field),
                    kind: $crate::device::reflection::kind_of(|of: &$rust| &of.$field),
                }),+],
            }
        }),+]
    };
}
pub(super) use twins;

mod tests {
    use std::collections::BTreeSet;

    use heterokv_shaders::{SHADERS, Variant};
    use naga::{AddressSpace, Handle, Module, ScalarKind, Type, TypeInner};

    use super::super::{attention, encode, groups, key_scores, layers, sample, scores, select};
    use super::*;

    /// Structs that shaders write for shaders: the host knows no more than their size, in words.
    const OF_SHADERS_ALONE: [(&str, usize); 1] = [("Choice", select::CHOICE_WORDS)];

    fn all_twins() -> Vec<Twin> {
        let of_modules = [
            attention::twins(),
            encode::twins(),
            groups::twins(),
            key_scores::twins(),
            layers::twins(),
            sample::twins(),
            scores::twins(),
            select::twins(),
        ];
        of_modules.into_iter().flatten().collect()
    }

    fn parse(wgsl: &str) -> Module {
        naga::front::wgsl::parse_str(wgsl).expect("it is valid")
    }

    /// The structs of the buffers of a shader.
    fn structs(module: &Module) -> BTreeSet<Handle<Type>> {
        let globals = module.global_variables.iter().map(|(_, global)| global);
        let bound = globals.filter(|global| {
            matches!(global.space, AddressSpace::Uniform | AddressSpace::Storage { .. })
        });
        let element = |ty: Handle<Type>| match module.types[ty].inner {
            TypeInner::Array { base, .. } => base,
            _ => ty,
        };
        let elements = bound.map(|global| element(global.ty));
        elements.filter(|ty| matches!(module.types[*ty].inner, TypeInner::Struct { .. })).collect()
    }

    /// Name, size and fields of a struct, as the shader has them.
    fn read(module: &Module, ty: Handle<Type>) -> (String, usize, Vec<Field>) {
        let TypeInner::Struct { members, span } = &module.types[ty].inner else {
            unreachable!("only structs are asked for")
        };
        let fields = members.iter().map(|member| Field {
            name: member.name.clone().unwrap_or_default(),
            start: member.offset as usize,
            kind: match module.types[member.ty].inner {
                TypeInner::Scalar(scalar) => match scalar.kind {
                    ScalarKind::Uint => u32::NAME,
                    ScalarKind::Float => f32::NAME,
                    _ => "another scalar",
                },
                _ => "no scalar",
            },
        });
        let name = module.types[ty].name.clone().unwrap_or_default();
        (name, *span as usize, fields.collect())
    }

    /// What is wrong with the structs of a shader, a line each, and how many are right.
    fn findings(shader: &Shader, module: &Module, twins: &[Twin]) -> (Vec<String>, usize) {
        let (mut findings, mut num_right) = (Vec::new(), 0);
        for ty in structs(module) {
            let (name, num_bytes, fields) = read(module, ty);
            let of_shader = |twin: &&Twin| {
                twin.name == name && twin.shaders.iter().any(|other| other.name == shader.name)
            };
            if let Some((_, words)) = OF_SHADERS_ALONE.iter().find(|(own, _)| *own == name) {
                if num_bytes != 4 * words {
                    findings.push(format!("{} {name}: {num_bytes} bytes", shader.name));
                }
                continue;
            }
            match twins.iter().find(of_shader) {
                None => findings.push(format!("{} {name} has no twin", shader.name)),
                Some(twin) if twin.fields != fields || twin.num_bytes != num_bytes => {
                    findings.push(format!("{} {name}: {fields:?}", shader.name));
                }
                Some(_) => num_right += 1,
            }
        }
        (findings, num_right)
    }

    #[test]
    fn structs_are_those_of_the_shaders() {
        let twins = all_twins();
        let mut num_right = 0;
        for shader in SHADERS {
            let module = parse(&shader.wgsl(Variant::default()));
            let (findings, right) = findings(shader, &module, &twins);
            assert_eq!(findings, [""; 0]);
            num_right += right;
        }
        // Each twin was met in each of its shaders.
        assert_eq!(num_right, twins.iter().map(|twin| twin.shaders.len()).sum());
    }

    #[test]
    fn a_struct_that_differs_is_seen() {
        let twins = all_twins();
        let shader = &heterokv_shaders::RMS_NORM;
        let right = shader.wgsl(Variant::default());
        let of = |wgsl: &str| findings(shader, &parse(wgsl), &twins).0;
        assert_eq!(of(&right), [""; 0]);
        for (from, to) in [
            // Swapped, of another type, one more, one less, of another name.
            ("rows: u32,\n    cols: u32,", "cols: u32,\n    rows: u32,"),
            ("eps: f32,", "eps: u32,"),
            ("eps: f32,", "eps: f32,\n    unused: u32,"),
            ("    eps: f32,\n", ""),
            ("eps: f32,", "epsilon: f32,"),
        ] {
            let wrong = right.replacen(from, to, 1).replace("params.eps", "1.0");
            assert_eq!(of(&wrong).len(), 1, "{from}");
        }
        assert_eq!(findings(shader, &parse(&right), &[]).0.len(), 1, "no twin");
    }
}
