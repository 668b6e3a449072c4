//! Licences and sources of every dependency, against the lists in `deny.toml`.
//!
//! `cargo deny` does the same and more where it is installed; this check needs nothing but cargo, so that it
//! always runs.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Package;
use serde::Deserialize;

use crate::workspace::Workspace;

/// The part of `deny.toml` that is read here.
#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licenses,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// What is wrong with the packages that the lock file pins, one line each.
///
/// # Errors
/// If `deny.toml` or the packages cannot be read.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let path = workspace.root().join("deny.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let policy: Policy = toml::from_str(&text).context("deny.toml lacks a list")?;
    let packages = workspace.packages()?.packages;
    ensure!(packages.len() > 10, "cargo metadata names only {} packages", packages.len());
    Ok(packages.iter().filter_map(|package| finding(&policy, package)).collect())
}

fn finding(policy: &Policy, package: &Package) -> Option<String> {
    let name = format!("{} {}", package.name, package.version);
    if let Some(source) = &package.source
        && !policy
            .sources
            .allow_registry
            .iter()
            .any(|registry| source.repr.strip_prefix("registry+") == Some(registry))
    {
        return Some(format!("{name}: comes from {source}, which deny.toml does not allow"));
    }
    let Some(expression) = &package.license else {
        return Some(format!("{name}: states no licence"));
    };
    match is_allowed(expression, &policy.licenses.allow) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name}: `{expression}` is not allowed by deny.toml")),
        Err(error) => Some(format!("{name}: `{expression}` is not understood: {error:#}")),
    }
}

/// Whether an SPDX expression can be satisfied by allowed licences alone. The slash of old manifests means OR.
fn is_allowed(expression: &str, allowed: &[String]) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let holds = parser.any()?;
    ensure!(parser.words.is_empty(), "`{}` stands too many", parser.words.join(" "));
    Ok(holds)
}

/// Recursive descent: OR binds loosest, then AND, then WITH.
struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl<'a> Parser<'a> {
    fn any(&mut self) -> Result<bool> {
        let mut holds = self.all()?;
        while self.take("OR") {
            holds |= self.all()?;
        }
        Ok(holds)
    }

    fn all(&mut self) -> Result<bool> {
        let mut holds = self.one()?;
        while self.take("AND") {
            holds &= self.one()?;
        }
        Ok(holds)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let holds = self.any()?;
            ensure!(self.take(")"), "a parenthesis is not closed");
            return Ok(holds);
        }
        let mut licence = self.next()?.to_owned();
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.next()?);
        }
        Ok(self.allowed.contains(&licence))
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn next(&mut self) -> Result<&'a str> {
        match self.words.split_first() {
            Some((word, rest)) if !["OR", "AND", "WITH", ")"].contains(word) => {
                self.words = rest;
                Ok(word)
            }
            _ => bail!("a licence is missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_hold_by_what_is_allowed() {
        let allowed = ["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].map(String::from);
        for (expression, expected) in [
            ("MIT", true),
            ("Apache-2.0", false),
            ("Apache-2.0 OR MIT", true),
            ("Apache-2.0/MIT", true),
            ("Apache-2.0 / MIT", true),
            ("Apache-2.0 AND MIT", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0", false),
            ("GPL-3.0 OR MIT AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0 WITH LLVM-exception AND GPL-3.0", false),
        ] {
            let holds = is_allowed(expression, &allowed).expect("it is well-formed");
            assert_eq!(holds, expected, "{expression}");
        }
    }

    #[test]
    fn broken_expressions_are_errors() {
        for expression in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT Apache-2.0", "MIT WITH"] {
            assert!(is_allowed(expression, &["MIT".to_owned()]).is_err(), "{expression:?}");
        }
    }

    #[test]
    fn the_dependencies_are_allowed_and_an_empty_list_allows_none() {
        let workspace = Workspace::around_this_package().expect("we are in it");
        let found = check(&workspace).expect("the lists can be read");
        assert!(found.is_empty(), "{found:#?}");

        let packages = workspace.packages().expect("the packages can be read").packages;
        let registry = "https://github.com/rust-lang/crates.io-index".to_owned();
        let policy = |allow: &[&str], allow_registry| Policy {
            licenses: Licenses { allow: allow.iter().map(|&s| s.to_owned()).collect() },
            sources: Sources { allow_registry },
        };
        let strict = policy(&[], vec![registry]);
        assert!(packages.iter().all(|package| finding(&strict, package).is_some()));
        let homely = policy(&["MIT"], vec![]);
        let foreign = packages.iter().find(|p| p.name == "anyhow").expect("we depend on it");
        let finding = finding(&homely, foreign).expect("no registry is allowed");
        assert!(finding.contains("comes from"), "{finding}");
    }
}
