//! Which caches are measured: every preset at every ratio, and what becomes of those that cannot be.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheSpec, Error, KvShape};
use heterokv_eval::Candidate;

use crate::caches::FULL;

/// What a preset leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing for good: a later step can reach every token, or those of the heads that ask for others.
    Nothing,
    /// Tokens for good, as many as a ratio says.
    Tokens,
    /// Tokens for good, as many as it finds on the text.
    OwnShare,
}

/// A preset of the table.
#[derive(Debug)]
pub(crate) struct Preset {
    pub(crate) name: &'static str,
    pub(crate) loss: Loss,
    /// Whether it goes by a profile of heads.
    needs_heads: bool,
}

const fn preset(name: &'static str, loss: Loss) -> Preset {
    Preset { name, loss, needs_heads: false }
}

const fn by_heads(name: &'static str, loss: Loss) -> Preset {
    Preset { name, loss, needs_heads: true }
}

/// All of them, in the order of the table.
pub(crate) const PRESETS: [Preset; 16] = [
    preset("hca", Loss::Nothing),
    preset("hca-rescore", Loss::Nothing),
    by_heads("heterocache", Loss::Nothing),
    preset("snapkv", Loss::Tokens),
    preset("pyramidkv", Loss::Tokens),
    preset("adakv", Loss::Tokens),
    preset("kvcompress", Loss::Tokens),
    preset("h2o", Loss::Tokens),
    preset("tova", Loss::Tokens),
    preset("streamingllm", Loss::Tokens),
    preset("knorm", Loss::Tokens),
    preset("keydiff", Loss::Tokens),
    preset("expected", Loss::Tokens),
    by_heads("baklava", Loss::Tokens),
    preset("dbudget", Loss::OwnShare),
    preset("corm", Loss::OwnShare),
];

/// A cache that was asked for.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its spec without the file of heads, whose place says nothing to others.
    pub(crate) name: String,
    /// None where it was named by its spec.
    pub(crate) preset: Option<&'static Preset>,
    /// In percent; none where no ratio was asked for.
    pub(crate) ratio: Option<f64>,
    pub(crate) standing: Standing,
}

/// What becomes of it.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It is measured.
    Ready(Box<Candidate<'static>>),
    /// The preset cannot keep the ratio for this model: the least that it can, in percent.
    Unreachable { least: f64 },
    /// There is no such cache for this model: in one word and in full.
    Refused { word: &'static str, reason: String },
}

impl Standing {
    /// What a table says of it; empty where it is measured.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Ready(_) => "",
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { word, .. } => word,
        }
    }
}

impl Entry {
    /// What is measured, where it is.
    pub(crate) fn candidate(&self) -> Option<&Candidate<'static>> {
        match &self.standing {
            Standing::Ready(candidate) => Some(candidate),
            _ => None,
        }
    }
}

/// The model that caches are for, and the profile of its heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit<'a> {
    pub(crate) shape: &'a KvShape,
    pub(crate) fingerprint: &'a str,
    pub(crate) heads: Option<&'a Path>,
}

impl Fit<'_> {
    /// `full`, and behind it the presets of these names at these ratios (of no names all, unless caches are named by
    /// their specs), and these caches.
    ///
    /// # Errors
    /// A name that no preset has; caches as [`Fit::specs`].
    pub(crate) fn entries(
        self,
        names: &[String],
        ratios: &[f64],
        caches: &[String],
    ) -> Result<Vec<Entry>> {
        for name in names {
            let known = PRESETS.map(|preset| preset.name);
            let is_known = known.contains(&name.as_str());
            ensure!(is_known, "--presets: there is no `{name}`; there are {}", known.join(", "));
        }
        let is_all = names.is_empty() && caches.is_empty();
        let mut entries = vec![self.entry(FULL.to_owned(), None, None)];
        for preset in &PRESETS {
            if !is_all && !names.iter().any(|name| name == preset.name) {
                continue;
            }
            if preset.loss == Loss::OwnShare {
                entries.push(self.entry(preset.name.to_owned(), Some(preset), None));
                continue;
            }
            for &ratio in ratios {
                let spec = format!("{}:{ratio}%", preset.name);
                entries.push(self.entry(spec, Some(preset), Some(ratio)));
            }
        }
        let caches: Vec<String> = caches.iter().filter(|spec| *spec != FULL).cloned().collect();
        entries.extend(self.specs(&caches)?);
        Ok(entries)
    }

    /// Caches by their specs.
    ///
    /// # Errors
    /// A spec that is none or does not fit the model; a ratio that cannot be kept is no error.
    pub(crate) fn specs(self, specs: &[String]) -> Result<Vec<Entry>> {
        let entry = |spec: &String| {
            let entry = self.entry(spec.clone(), None, None);
            match entry.standing {
                Standing::Refused { reason, .. } => {
                    Err(anyhow::anyhow!(reason)).with_context(|| format!("the cache {spec}"))
                }
                _ => Ok(entry),
            }
        };
        specs.iter().map(entry).collect()
    }

    /// One of those that are measured where nothing is asked for.
    pub(crate) fn usual(self, spec: &str) -> Entry {
        self.entry(spec.to_owned(), None, None)
    }

    fn entry(self, name: String, preset: Option<&'static Preset>, ratio: Option<f64>) -> Entry {
        let standing = self.standing(&name).unwrap_or_else(|error| match error {
            Error::Ratio { least, .. } => Standing::Unreachable { least },
            other => Standing::Refused { word: "refused", reason: other.to_string() },
        });
        Entry { name, preset, ratio, standing }
    }

    fn standing(self, name: &str) -> heterokv_cache::Result<Standing> {
        let spec: CacheSpec = self.with_heads(name).parse()?;
        let config = spec.resolve(self.shape, Some(self.fingerprint))?;
        let promise = spec.promise();
        let name = name.to_owned();
        Ok(Standing::Ready(Box::new(Candidate {
            name,
            promise,
            config,
            profile: None,
            replace: None,
        })))
    }

    /// The spec with the profile of heads, where its preset goes by one.
    fn with_heads(self, spec: &str) -> String {
        let name = spec.split([':', ',']).next().unwrap_or_default();
        let needs_heads = PRESETS.iter().any(|preset| preset.name == name && preset.needs_heads);
        match self.heads {
            Some(file) if needs_heads => format!("{spec},heads={}", file.display()),
            _ => spec.to_owned(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use heterokv_cache::HeadShape;

    use super::*;

    /// As the default model has them.
    pub(crate) fn shape() -> KvShape {
        KvShape { num_layers: 30, heads: HeadShape::new(9, 3, 64).expect("it is valid") }
    }

    fn fit(shape: &KvShape) -> Fit<'_> {
        Fit { shape, fingerprint: "", heads: None }
    }

    #[test]
    fn nothing_that_was_asked_for_is_silently_absent() {
        let shape = shape();
        let entries = fit(&shape).entries(&[], &[25.0, 1.0], &[]).expect("names are known");
        let num_own = PRESETS.iter().filter(|preset| preset.loss == Loss::OwnShare).count();
        assert_eq!(entries.len(), 1 + 2 * (PRESETS.len() - num_own) + num_own);
        let of = |name: &str| entries.iter().find(|entry| entry.name == name).expect("it is there");
        assert!(of(FULL).candidate().is_some() && of("hca:25%").candidate().is_some());
        let Standing::Unreachable { least } = of("hca:1%").standing else {
            panic!("{:?}", of("hca:1%"));
        };
        assert!(least > 1.0 && of("hca:1%").standing.word() == "unreachable");
        assert_eq!(of("snapkv:25%").ratio, Some(25.0));
        assert_eq!(of("dbudget").ratio, None);
    }

    #[test]
    fn names_and_specs_narrow_what_is_measured() {
        let shape = shape();
        let names = |presets: &[&str], caches: &[&str]| {
            let [presets, caches] =
                [presets, caches].map(|of| of.iter().map(|word| (*word).to_owned()).collect());
            let (presets, caches): (Vec<String>, Vec<String>) = (presets, caches);
            fit(&shape)
                .entries(&presets, &[50.0], &caches)
                .map(|entries| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["hca"], &[]).expect("it is known"), [FULL, "hca:50%"]);
        assert_eq!(names(&[], &["hca:9%"]).expect("it is one"), [FULL, "hca:9%"]);
        assert_eq!(names(&["hca"], &["hca:9%"]).expect("it is"), [FULL, "hca:50%", "hca:9%"]);
        let told = names(&["hcb"], &[]).expect_err("there is none").to_string();
        assert!(told.contains("hcb") && told.contains("hca-rescore"), "{told}");
        let told = format!("{:#}", names(&[], &["hcb:9%"]).expect_err("there is none"));
        assert!(told.contains("the cache hcb:9%"), "{told}");
    }

    #[test]
    fn the_file_of_heads_goes_to_those_that_need_it_and_not_into_names() {
        let shape = shape();
        let fit = Fit { heads: Some(Path::new("a.heads")), ..fit(&shape) };
        assert_eq!(
            fit.with_heads("heterocache:50%,every=once"),
            "heterocache:50%,every=once,heads=a.heads"
        );
        assert_eq!(fit.with_heads("hca:50%"), "hca:50%");
        assert_eq!(fit.entry("hca:50%".to_owned(), None, None).name, "hca:50%");
    }
}
