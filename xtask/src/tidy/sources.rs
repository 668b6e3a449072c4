//! Source files: heads, length, whitespace, where unsafe code may stand, and no path of anybody's machine.

use super::tree::TextFile;

/// A file is one concept that can be read at a sitting.
const MAX_LINES: usize = 600;

/// The files outside `simd/` folders that may hold unsafe code: each maps a file into memory.
pub(super) const MEMORY_MAPPING: &[&str] =
    &["crates/model/src/checkpoint/mapping.rs", "crates/offload/src/disk/mapped.rs"];

/// The file that may hold unsafe code since a launch through CUDA is unsafe in every interface to it.
pub(super) const LAUNCHES: &[&str] = &["crates/attn/src/cuda/unchecked.rs"];

/// Folders that only exist on the machine of whoever wrote them down.
const MACHINE_FOLDERS: [&str; 4] = ["/home/", "/root/", "/tmp/", "/Users/"];

/// What is wrong with one file.
pub(super) fn check(file: &TextFile) -> Vec<String> {
    let mut findings = Vec::new();
    let path = &file.path;
    if file.is_source() {
        let head = if path.ends_with(".rs") { "//!" } else { "//" };
        if !file.text.starts_with(head) {
            findings
                .push(format!("{path}: does not open with a `{head}` head that says what it is"));
        }
    }
    let num_lines = file.text.lines().count();
    if path.ends_with(".rs") && num_lines > MAX_LINES {
        findings
            .push(format!("{path}: {num_lines} lines, more than {MAX_LINES}; split it by concept"));
    }
    for (line_idx, line) in file.text.lines().enumerate() {
        let mut find = |what: &str| findings.push(format!("{path}:{}: {what}", line_idx + 1));
        if line.contains('\t') {
            find("a tab");
        }
        if line.ends_with([' ', '\t']) {
            find("a trailing space");
        }
        if names_machine_folder(line) {
            find("a path of one machine");
        }
        if path.ends_with(".rs") && !may_be_unsafe(path) && is_unsafe(line) {
            find("unsafe code outside `simd/` folders and the files that map memory or launch");
        }
    }
    findings
}

/// Entries of the written lists that no longer fit the tree.
pub(super) fn check_written_lists(files: &[TextFile]) -> Vec<String> {
    [MEMORY_MAPPING, LAUNCHES].iter().flat_map(|list| check_list(list, files)).collect()
}

pub(super) fn check_list(list: &[&str], files: &[TextFile]) -> Vec<String> {
    let holds_unsafe =
        |path: &str| files.iter().any(|file| file.path == path && file.text.lines().any(is_unsafe));
    let stale = list.iter().filter(|path| !holds_unsafe(path));
    stale.map(|path| format!("{path}: listed as holding unsafe code, but holds none")).collect()
}

fn may_be_unsafe(path: &str) -> bool {
    let in_simd_folder = path
        .rsplit_once('/')
        .is_some_and(|(folder, _)| folder.split('/').any(|name| name == "simd"));
    in_simd_folder || [MEMORY_MAPPING, LAUNCHES].iter().any(|list| list.contains(&path))
}

/// Whether the line, comments and quoted text aside, begins a block, function, implementation, trait or foreign
/// block that is unsafe. The compiler denies such code too; this one also sees what a file allows itself.
fn is_unsafe(line: &str) -> bool {
    // Every second part of a line split at quotes stands between two of them.
    let unquoted: String = line.split('"').step_by(2).collect();
    let code = unquoted.split("//").next().unwrap_or_default();
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe")
}

fn names_machine_folder(line: &str) -> bool {
    MACHINE_FOLDERS.iter().any(|folder| {
        line.split(folder).skip(1).any(|after| after.starts_with(|c: char| c.is_alphanumeric()))
    })
}
