//! Who is in a report, and by which name and look.

use super::paint::Look;
use crate::{Aggregate, Row};

/// The cache that all others are measured against.
const REFERENCE: &str = "full";

/// A cache of a report: one of other contents, or by other code, is another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    engine: String,
    cache: String,
    commit: String,
    build: String,
    digest: String,
}

impl Member {
    /// What can tell it from others of its name and engine.
    fn parts(&self) -> [(&'static str, &str); 3] {
        [("commit", &self.commit), ("build", &self.build), ("contents", &self.digest)]
    }
}

impl From<&Row> for Member {
    fn from(row: &Row) -> Self {
        let Row { run, cache, cache_digest, .. } = row;
        let [engine, cache, commit, build, digest] =
            [&run.engine, cache, &run.commit, &run.build, cache_digest].map(String::clone);
        Self { engine, cache, commit, build, digest }
    }
}

impl From<&Aggregate> for Member {
    fn from(aggregate: &Aggregate) -> Self {
        let Aggregate { engine, cache, commit, build, cache_digest, .. } = aggregate;
        let [engine, cache, commit, build, digest] =
            [engine, cache, commit, build, cache_digest].map(String::clone);
        Self { engine, cache, commit, build, digest }
    }
}

/// The engines, models and caches of a report, each in the order in which rows first show it.
pub(super) struct Cast {
    engines: Vec<String>,
    /// Fingerprint and name.
    models: Vec<(String, String)>,
    members: Vec<Member>,
}

impl Cast {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut cast = Self { engines: vec![], models: vec![], members: vec![] };
        for row in rows {
            let run = &row.run;
            add(&mut cast.engines, run.engine.clone());
            if !cast.models.iter().any(|(fingerprint, _)| *fingerprint == run.fingerprint) {
                cast.models.push((run.fingerprint.clone(), run.model.clone()));
            }
            add(&mut cast.members, Member::from(row));
        }
        cast
    }

    /// Whether names must say the engine.
    pub(super) fn has_engines(&self) -> bool {
        self.engines.len() > 1
    }

    /// Fingerprints, with the names.
    pub(super) fn models(&self) -> &[(String, String)] {
        &self.models
    }

    /// All caches.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// What a cache is called: its name, and whatever else is needed to tell it from the others.
    pub(super) fn label(&self, member: &Member) -> String {
        let engine = if self.has_engines() { member.engine.as_str() } else { "" };
        let parts = [member.cache.as_str(), engine, &self.distinction(member)];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" · ")
    }

    /// What tells a cache from others of its name and engine; empty where there are none.
    pub(super) fn distinction(&self, member: &Member) -> String {
        let same: Vec<&Member> = self
            .members
            .iter()
            .filter(|other| (&other.engine, &other.cache) == (&member.engine, &member.cache))
            .collect();
        let is_of_commits = same.iter().any(|other| other.commit != member.commit);
        let mut told = Vec::new();
        for (part, (name, value)) in member.parts().into_iter().enumerate() {
            // Another commit is another build, which says no more.
            let is_told = name == "build" && is_of_commits;
            if !is_told && same.iter().any(|other| other.parts()[part].1 != value) {
                told.push(format!("{name} {}", value.chars().take(13).collect::<String>()));
            }
        }
        told.join(", ")
    }

    /// How a cache is drawn. The reference is that of the first engine: of the others it is one more cache.
    pub(super) fn look(&self, member: &Member) -> Look {
        if self.is_reference(member) {
            return Look::Reference;
        }
        let mut others = self.members.iter().filter(|member| !self.is_reference(member));
        Look::Other(others.position(|other| other == member).unwrap_or(0))
    }

    fn is_reference(&self, member: &Member) -> bool {
        member.cache == REFERENCE && self.engines.first() == Some(&member.engine)
    }

    /// What was measured, in words, with the model where there are several.
    pub(super) fn subject(&self, fingerprint: &str, rest: &str) -> String {
        let model = self.models.iter().find(|(known, _)| known == fingerprint);
        match model {
            Some((_, name)) if self.models.len() > 1 => format!("{rest} · {name}"),
            _ => rest.to_owned(),
        }
    }
}

/// Aggregates that can be compared, those of one model, task and context length, in the order in which they come.
pub(super) fn comparable(aggregates: &[Aggregate]) -> Vec<Vec<&Aggregate>> {
    let key = |aggregate: &Aggregate| {
        (aggregate.fingerprint.clone(), aggregate.task.clone(), aggregate.context)
    };
    let mut groups: Vec<Vec<&Aggregate>> = Vec::new();
    for aggregate in aggregates {
        match groups.iter_mut().find(|group| key(group[0]) == key(aggregate)) {
            Some(group) => group.push(aggregate),
            None => groups.push(vec![aggregate]),
        }
    }
    groups
}

/// Appends what is not there yet.
pub(super) fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
