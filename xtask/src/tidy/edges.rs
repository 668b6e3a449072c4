//! Who may know whom: every dependency between our crates is on the list, and so are the holders of the few
//! outside crates that only one of ours may name.
//!
//! The list is the diagram of `ARCHITECTURE.md`; a new edge is a change to both, with a reason.

use cargo_metadata::{DependencyKind, Metadata};

/// What each crate may depend on. [`TOOLS`] are not among them and may see all.
const ALLOWED: [(&str, &[&str]); 10] = [
    ("heterokv-quant", &[]),
    ("heterokv-evict", &[]),
    ("heterokv-shaders", &[]),
    ("heterokv-gpu", &[]),
    ("heterokv-offload", &["heterokv-quant"]),
    ("heterokv-attn", &["heterokv-quant", "heterokv-gpu", "heterokv-shaders", "heterokv-evict"]),
    ("heterokv-cache", CACHE),
    ("heterokv-model", &["heterokv-cache", "heterokv-quant", "heterokv-attn", "heterokv-gpu"]),
    ("heterokv-eval", &["heterokv-model", "heterokv-cache", "heterokv-quant", "heterokv-evict"]),
    (
        "heterokv",
        &["heterokv-eval", "heterokv-model", "heterokv-cache", "heterokv-attn", "heterokv-gpu"],
    ),
];

/// The cache composes the crates below it, and so may name each of them.
const CACHE: &[&str] = &[
    "heterokv-attn",
    "heterokv-evict",
    "heterokv-gpu",
    "heterokv-offload",
    "heterokv-quant",
    "heterokv-shaders",
];

/// Crates that test, measure or automate.
const TOOLS: [&str; 4] = ["heterokv-bench", "heterokv-testkit", "heterokv-tests", "xtask"];

/// What every crate may use, but only in its tests.
const TESTKIT: &str = "heterokv-testkit";

/// Outside crates, by the beginning of their names, and the only crate of ours that may name them.
const CONFINED: [(&str, &str); 2] = [("wgpu", "heterokv-gpu"), ("cudarc", "heterokv-attn")];

/// Outside crates that a build has only where a feature asks for them.
const BEHIND_FEATURES: [&str; 1] = ["cudarc"];

/// One crate of ours and what its manifest names.
#[derive(Clone, Debug)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) dependencies: Vec<Dependency>,
}

/// One entry of a manifest's dependencies.
#[derive(Clone, Debug)]
pub(super) struct Dependency {
    pub(super) name: String,
    pub(super) is_dev: bool,
    pub(super) is_optional: bool,
}

impl Crate {
    /// The members of the workspace.
    pub(super) fn of_workspace(members: &Metadata) -> Vec<Self> {
        let of_package = |package: &cargo_metadata::Package| Self {
            name: package.name.to_string(),
            dependencies: package
                .dependencies
                .iter()
                .map(|dependency| Dependency {
                    name: dependency.name.clone(),
                    is_dev: dependency.kind == DependencyKind::Development,
                    is_optional: dependency.optional,
                })
                .collect(),
        };
        members.packages.iter().map(of_package).collect()
    }
}

/// The edges that are not allowed, and the crates of which the list knows nothing.
pub(super) fn check(crates: &[Crate]) -> Vec<String> {
    let mut findings = Vec::new();
    for ours in crates {
        let name = ours.name.as_str();
        for (confined, holder) in CONFINED {
            let named = ours.dependencies.iter().filter(|d| d.name.starts_with(confined));
            if name != holder {
                findings.extend(
                    named.map(|d| format!("{name} -> {}: only {holder} may name it", d.name)),
                );
            }
        }
        let fixed = ours.dependencies.iter().filter(|d| !d.is_optional);
        let fixed = fixed.filter(|d| BEHIND_FEATURES.contains(&d.name.as_str()));
        findings.extend(fixed.map(|d| format!("{name} -> {}: belongs behind a feature", d.name)));
        if TOOLS.contains(&name) {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(from, _)| *from == name) else {
            findings.push(format!("{name}: not among the crates whose edges are written down"));
            continue;
        };
        for dependency in &ours.dependencies {
            let to = dependency.name.as_str();
            let is_ours = crates.iter().any(|other| other.name == to);
            let is_testing = to == TESTKIT && dependency.is_dev;
            if is_ours && !is_testing && !allowed.contains(&to) {
                findings.push(format!("{name} -> {to}: not an allowed edge"));
            }
        }
    }
    findings
}
