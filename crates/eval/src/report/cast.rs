//! Who is in a report, and by which name and look.

use super::paint::Look;
use crate::{Aggregate, Row};

/// The cache that all others are measured against.
const REFERENCE: &str = "full";

/// A cache of a report: the same cache by other code is another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) engine: String,
    pub(super) cache: String,
    commit: String,
}

impl From<&Row> for Member {
    fn from(row: &Row) -> Self {
        let (engine, commit) = (row.run.engine.clone(), row.run.commit.clone());
        Self { engine, cache: row.cache.clone(), commit }
    }
}

impl From<&Aggregate> for Member {
    fn from(aggregate: &Aggregate) -> Self {
        let Aggregate { engine, cache, commit, .. } = aggregate;
        Self { engine: engine.clone(), cache: cache.clone(), commit: commit.clone() }
    }
}

/// The engines, models and caches of a report, each in the order in which rows first show it.
pub(super) struct Cast {
    engines: Vec<String>,
    /// Fingerprint and name.
    models: Vec<(String, String)>,
    members: Vec<Member>,
    has_commits: bool,
}

impl Cast {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut cast =
            Self { engines: vec![], models: vec![], members: vec![], has_commits: false };
        for row in rows {
            let run = &row.run;
            add(&mut cast.engines, run.engine.clone());
            if !cast.models.iter().any(|(fingerprint, _)| *fingerprint == run.fingerprint) {
                cast.models.push((run.fingerprint.clone(), run.model.clone()));
            }
            add(&mut cast.members, Member::from(row));
            cast.has_commits |= run.commit != rows[0].run.commit;
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

    /// What a cache is called: with its engine, and with the commit of the code, where there are several.
    pub(super) fn label(&self, member: &Member) -> String {
        let Member { engine, cache, commit } = member;
        let engine = self.has_engines().then_some(engine);
        let commit = self.has_commits.then_some(commit);
        [Some(cache), engine, commit].into_iter().flatten().cloned().collect::<Vec<_>>().join(" · ")
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
