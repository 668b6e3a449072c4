//! Who is in a report, and by which name and look.

use super::paint::Look;
use crate::{Aggregate, Row};

/// The cache that all others are measured against.
const REFERENCE: &str = "full";

/// The engines, models and caches of a report, each in the order in which rows first show it.
pub(super) struct Cast {
    engines: Vec<String>,
    /// Fingerprint and name.
    models: Vec<(String, String)>,
    /// Engine and cache.
    caches: Vec<(String, String)>,
}

impl Cast {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut cast = Self { engines: vec![], models: vec![], caches: vec![] };
        for row in rows {
            let run = &row.run;
            add(&mut cast.engines, run.engine.clone());
            if !cast.models.iter().any(|(fingerprint, _)| *fingerprint == run.fingerprint) {
                cast.models.push((run.fingerprint.clone(), run.model.clone()));
            }
            add(&mut cast.caches, (run.engine.clone(), row.cache.clone()));
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

    /// Engines and caches.
    pub(super) fn caches(&self) -> impl Iterator<Item = (&str, &str)> {
        self.caches.iter().map(|(engine, cache)| (engine.as_str(), cache.as_str()))
    }

    /// What a cache is called.
    pub(super) fn label(&self, engine: &str, cache: &str) -> String {
        if self.has_engines() { format!("{cache} · {engine}") } else { cache.to_owned() }
    }

    /// How a cache is drawn. The reference is that of the first engine: of the others it is one more cache.
    pub(super) fn look(&self, engine: &str, cache: &str) -> Look {
        if self.is_reference(engine, cache) {
            return Look::Reference;
        }
        let mut others = self.caches().filter(|(engine, cache)| !self.is_reference(engine, cache));
        Look::Other(others.position(|other| other == (engine, cache)).unwrap_or(0))
    }

    pub(super) fn is_reference(&self, engine: &str, cache: &str) -> bool {
        cache == REFERENCE && self.engines.first().is_some_and(|first| first == engine)
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
