//! The workspace is tidy, and each check sees what it is there to see.

use super::edges::{Crate, Dependency};
use super::tree::TextFile;
use super::*;

fn file(path: &str, text: impl Into<String>) -> TextFile {
    TextFile { path: path.to_owned(), text: text.into() }
}

#[test]
fn the_workspace_is_tidy() {
    let workspace = Workspace::around_this_package().expect("we are in it");
    let findings = check(&workspace).expect("the tree can be read");
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn a_good_source_file_passes() {
    let good = "//! What it is.\n\n/// Not unsafe, see unsafe_code.\nfn f() {} // unsafe\n";
    assert_eq!(sources::check(&file("crates/a/src/lib.rs", good)), [""; 0]);
    assert_eq!(sources::check(&file("shaders/src/a.wgsl", "// What it is.\n")), [""; 0]);
    let quoted = "//! Head.\nfn f() { g(\u{22}unsafe\u{22}) }\n";
    assert_eq!(sources::check(&file("crates/a/src/lib.rs", quoted)), [""; 0]);
    let longest = format!("//! Head.\n{}", "x\n".repeat(599));
    assert_eq!(sources::check(&file("crates/a/src/lib.rs", longest)), [""; 0]);
}

#[test]
fn every_fault_of_a_source_file_is_found() {
    let unsafe_word = ["un", "safe"].concat();
    let cases = [
        ("crates/a/src/lib.rs", "use std::fs;\n".to_owned(), "head"),
        ("crates/a/src/lib.rs", String::new(), "head"),
        ("crates/a/src/lib.rs", "// Not for the docs.\n".to_owned(), "head"),
        ("shaders/src/a.wgsl", "fn main() {}\n".to_owned(), "head"),
        ("crates/a/src/lib.rs", format!("//! Head.\n{}", "x\n".repeat(600)), "601 lines"),
        ("crates/a/src/lib.rs", "//! Head.\n\tfn f() {}\n".to_owned(), "a tab"),
        ("docs/a.md", "two spaces  \n".to_owned(), "trailing space"),
        ("docs/a.md", ["see /ho", "me/somebody/models"].concat(), "one machine"),
        ("Cargo.toml", ["path = \"/tm", "p/x\""].concat(), "one machine"),
        ("crates/a/src/lib.rs", format!("//! Head.\nlet x = {unsafe_word} {{ f() }};"), "simd"),
        ("crates/a/src/lib.rs", format!("//! Head.\nlet x = {{{unsafe_word}{{f()}}}};"), "simd"),
        ("crates/a/src/simd.rs", format!("//! Head.\npub {unsafe_word} fn f() {{}}"), "simd"),
        ("crates/a/src/lib.rs", format!("//! Head.\n{unsafe_word} impl Send for X {{}}"), "simd"),
    ];
    for (path, text, expected) in cases {
        let findings = sources::check(&file(path, text.clone()));
        assert_eq!(findings.len(), 1, "{text:?}: {findings:?}");
        assert!(findings[0].starts_with(path) && findings[0].contains(expected), "{findings:?}");
    }
}

#[test]
fn unsafe_code_may_stand_in_simd_folders() {
    let text = format!("//! Head.\npub {} fn f() {{}}\n", ["un", "safe"].concat());
    assert_eq!(sources::check(&file("crates/a/src/simd/avx2.rs", text)), [""; 0]);
}

#[test]
fn a_listed_file_that_is_safe_or_gone_is_found() {
    let files =
        [file("a.rs", format!("{} {{}}", ["un", "safe"].concat())), file("b.rs", "fn f() {}")];
    let findings = sources::check_list(&["a.rs", "b.rs", "c.rs"], &files);
    assert_eq!(findings.len(), 2, "{findings:?}");
}

#[test]
fn a_named_path_that_does_not_exist_is_found() {
    let text = "See `crates/a` and `docs/gone.md`.\nRun `cargo x`, `tests/*`, `xtask/gone`.\n";
    let exists = |path: &str| path == "crates/a";
    let findings = documents::check(&file("README.md", text), &exists);
    assert_eq!(
        findings,
        ["README.md:1: `docs/gone.md` does not exist", "README.md:2: `xtask/gone` does not exist"]
    );
    assert_eq!(documents::check(&file("a.rs", text), &exists), [""; 0]);
}

#[test]
fn a_missing_document_is_found() {
    let findings = documents::check_presence(&[file("README.md", ""), file("CHANGELOG.md", "")]);
    assert_eq!(findings, ["ARCHITECTURE.md: missing", ".ci/run: missing"]);
}

#[test]
fn a_published_crate_without_its_readme_is_found() {
    let workspace = Workspace::around_this_package().expect("we are in it");
    let mut members = workspace.members().expect("it can be read");
    members.packages.retain(|package| package.name == "heterokv-quant");
    assert_eq!(documents::check_crates(&members, workspace.root()), [""; 0]);
    members.packages[0].readme = Some("GONE.md".into());
    assert_eq!(documents::check_crates(&members, workspace.root()).len(), 1);
    members.packages[0].readme = None;
    assert_eq!(documents::check_crates(&members, workspace.root()).len(), 1);
    members.packages[0].publish = Some(Vec::new());
    assert_eq!(documents::check_crates(&members, workspace.root()), [""; 0]);
}

/// A workspace of these crates, each with its dependencies; a name after `dev ` is one for tests, one after `optional `
/// is behind a feature.
fn crates(manifests: &[(&str, &[&str])]) -> Vec<Crate> {
    let dependency = |entry: &&str| Dependency {
        name: entry.trim_start_matches("dev ").trim_start_matches("optional ").to_owned(),
        is_dev: entry.starts_with("dev "),
        is_optional: entry.starts_with("optional "),
    };
    let of_manifest = |(name, dependencies): &(&str, &[&str])| Crate {
        name: (*name).to_owned(),
        dependencies: dependencies.iter().map(dependency).collect(),
    };
    manifests.iter().map(of_manifest).collect()
}

#[test]
fn the_edges_of_the_diagram_are_allowed() {
    let all = crates(&[
        ("heterokv-testkit", &["heterokv-quant"]),
        ("heterokv-quant", &["half", "dev heterokv-testkit"]),
        ("heterokv-evict", &["thiserror"]),
        ("heterokv-offload", &["heterokv-quant"]),
        ("heterokv-gpu", &["wgpu"]),
        ("heterokv-attn", &["heterokv-quant", "heterokv-evict", "heterokv-gpu", "optional cudarc"]),
        ("heterokv-cache", &["heterokv-attn", "heterokv-evict", "heterokv-offload"]),
        ("heterokv-model", &["heterokv-cache", "heterokv-quant", "heterokv-attn", "heterokv-gpu"]),
        ("heterokv-eval", &["heterokv-model", "heterokv-cache", "heterokv-evict"]),
        (
            "heterokv",
            &["heterokv-eval", "heterokv-model", "heterokv-cache", "heterokv-attn", "heterokv-gpu"],
        ),
        ("heterokv-tests", &["heterokv-offload", "heterokv-testkit"]),
    ]);
    assert_eq!(edges::check(&all), [""; 0]);
}

#[test]
fn every_other_edge_is_found() {
    for (from, to) in [
        ("heterokv-evict", "heterokv-quant"),
        ("heterokv-evict", "dev heterokv-quant"),
        ("heterokv-offload", "heterokv-evict"),
        ("heterokv-offload", "heterokv-attn"),
        ("heterokv-attn", "heterokv-offload"),
        ("heterokv-quant", "heterokv-attn"),
        ("heterokv-model", "heterokv-offload"),
        ("heterokv-model", "heterokv-shaders"),
        ("heterokv", "heterokv-quant"),
        ("heterokv-quant", "heterokv-testkit"),
        ("heterokv-attn", "wgpu"),
        ("heterokv-tests", "wgpu-core"),
        ("heterokv-gpu", "optional cudarc"),
        ("heterokv-attn", "cudarc"),
    ] {
        let mut all = crates(&[(from, &[to])]);
        let name = to.trim_start_matches("dev ").trim_start_matches("optional ");
        all.extend(crates(&[(name, &[])]).into_iter().filter(|c| c.name.starts_with("heterokv")));
        let findings = edges::check(&all);
        assert_eq!(findings.len(), 1, "{from} -> {to}: {findings:?}");
        assert!(findings[0].starts_with(from) && findings[0].contains(name), "{findings:?}");
    }
}

#[test]
fn a_crate_that_the_list_does_not_know_is_found() {
    let findings = edges::check(&crates(&[("heterokv-new", &[])]));
    assert_eq!(findings.len(), 1, "{findings:?}");
}
