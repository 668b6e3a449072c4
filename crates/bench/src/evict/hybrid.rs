//! Coded keys of all tokens and roles of heads together: the bytes of a cache's codes, shared out among its heads by their
//! roles, by their stability and by measured errors, against that cache and against `heterocache`.

mod missed;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{
    CacheConfig, CachePlan, HcaConfig, HeadMeasure, HeadProfile, HeadRole, KeyFormat, KeyMix, Keys,
    KvShape, SimilarityAt,
};
use heterokv_eval::{
    Candidate, Engine, ExactTokens, Job, KeyUse, Row, Sample, Sensitivity, SensitivitySettings,
    Watcher, evaluate, measure_sensitivity,
};
use heterokv_evict::apportion;
use heterokv_model::Model;
use tempfile::TempDir;

use super::grid::{Entry, Fit, Standing};
use super::quality::{FEW_STEPS, jobs};
use super::table::Board;
use super::{Part, Suite};
use crate::memory;
use crate::outcome::Table;
use crate::sheet::{Cell, Sheet};

/// Tokens in the caches.
const CONTEXT: usize = 4096;

/// Caches whose bytes are shared out.
const SPECS: [&str; 3] = ["hca:12.5%", "hca,keys=alloc/2,recent=32", "hca-rescore:6.25%"];

/// The other parent, beside them; where it cannot be so small, its row says how small it can be.
const OTHER: &str = "heterocache:25%";

/// The same of a test.
const SMALL: [&str; 2] =
    ["hca,keys=alloc/4,sinks=2,recent=8", "hca-rescore,keys=alloc/4,sinks=2,recent=8"];

/// Tokens fed behind a context.
const NUM_STEPS: usize = 128;

/// What is put to each cache.
const TASKS: [&str; 2] = ["kl", "recall"];

/// Where the text begins by which errors and attention are measured; a shorter one ends with it.
const MEASURED_FROM: usize = 10_000;

/// Its last tokens, whose queries are asked.
const ASKED_TOKENS: usize = 64;

/// Bits of `alloc` keys, least and most.
const BITS: [f64; 2] = [0.5, 8.0];

/// How the bytes of codes are shared out among heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// More to volatile heads and pivots, less to satellites and anchors.
    Roles,
    /// The other way round.
    RolesReversed,
    /// In proportion to 1 / stability, as HeteroCache shares out tokens.
    Unstable,
    /// In proportion to stability.
    Stable,
    /// By what errors cost on another text (`heterokv mix`), whatever the role.
    Errors,
}

impl Share {
    const ALL: [Self; 5] =
        [Self::Roles, Self::RolesReversed, Self::Unstable, Self::Stable, Self::Errors];

    fn words(self) -> &'static str {
        match self {
            Self::Roles => "by role",
            Self::RolesReversed => "by role, reversed",
            Self::Unstable => "1 / stability",
            Self::Stable => "stability",
            Self::Errors => "by errors",
        }
    }

    /// What a head has of an equal share; none where errors say it.
    fn weight(self, role: HeadRole, stability: f64) -> Option<f64> {
        let by_role = |[volatile, pivot, satellite, anchor]: [f64; 4]| match role {
            HeadRole::Volatile => volatile,
            HeadRole::Pivot => pivot,
            HeadRole::Satellite { .. } => satellite,
            HeadRole::Anchor => anchor,
        };
        let stability = stability.max(1e-6);
        Some(match self {
            Self::Roles => by_role([1.4, 1.15, 0.95, 0.9]),
            Self::RolesReversed => by_role([0.8, 0.9, 1.05, 1.1]),
            Self::Unstable => 1.0 / stability,
            Self::Stable => stability,
            Self::Errors => return None,
        })
    }
}

/// Measures every context.
///
/// # Errors
/// No profile of heads or one without stabilities; caches that there are not, or whose keys are no `alloc`; too little memory;
/// a text that is too short; and a cache that breaks its promise.
pub(super) fn run(suite: &Suite<'_>) -> Result<Part> {
    let arguments = suite.arguments;
    let (shape, fingerprint) = (suite.opened.shape()?, suite.opened.fingerprint());
    let heads = heads(suite, &shape, &fingerprint)?;
    let specs: Vec<String> = match (arguments.test, &arguments.caches[..]) {
        (true, _) => SMALL.map(str::to_owned).to_vec(),
        (false, []) => SPECS.map(str::to_owned).to_vec(),
        (false, asked) => asked.to_vec(),
    };
    let (offsets, num_steps) = match arguments.test {
        true => (&[0, 300][..], FEW_STEPS),
        false => (&arguments.offsets[..], NUM_STEPS),
    };
    let fit = Fit { shape: &shape, fingerprint: &fingerprint, heads: arguments.heads.as_deref() };
    let parents = specs.iter().map(|spec| Parent::new(spec, fit));
    let parents = parents.collect::<Result<Vec<_>>>()?;
    let model = suite.opened.model(suite.level)?;
    let mut sheet = sheet(&suite.opened.name, offsets);
    let mut missed = missed::Missed::new(&shape)?;
    for context in suite.contexts(&[CONTEXT], &[600]) {
        let text = measured_text(&suite.opened.tokens, context + ASKED_TOKENS)?;
        suite.say("hybrid: what selections miss");
        missed.add(&model, text, &heads)?;
        let mut hybrid = Hybrid {
            suite,
            model: &model,
            shape: &shape,
            fingerprint: &fingerprint,
            heads: &heads,
            context,
            text,
            folder: tempfile::tempdir()?,
            num_mixes: 0,
            costs: Vec::new(),
        };
        let mut families = Vec::new();
        for parent in &parents {
            families.push(hybrid.family(parent, fit)?);
        }
        if !arguments.test {
            families.push(vec![fit.usual(OTHER)]);
        }
        let entries: Vec<&Entry> = families.iter().flatten().collect();
        let mut by_offset = Vec::new();
        for &offset in offsets {
            let jobs = jobs(suite, &TASKS, &[context], &[offset], num_steps)?;
            by_offset.push((hybrid.measure(&entries, &jobs)?, jobs));
        }
        for family in &families {
            let boards = by_offset.iter().map(|(rows, jobs)| Board::new(rows, jobs, family));
            let boards: Vec<Board<'_>> = boards.collect();
            let is_whole = boards.iter().all(Board::is_complete);
            ensure!(is_whole, "a cache that can be measured was not");
            add_rows(&mut sheet, context, family, &boards);
        }
    }
    let tables = vec![
        Table::new("evict-hybrid", sheet),
        Table::new("evict-hybrid-missed", missed.sheet(&suite.opened.name)),
    ];
    Ok(Part { name: "hybrid", tables, is_held: true })
}

/// The profile of heads that was asked for; of a test one in which every role is.
fn heads(suite: &Suite<'_>, shape: &KvShape, fingerprint: &str) -> Result<HeadProfile> {
    if suite.arguments.test {
        return made_up(shape, fingerprint);
    }
    let file = suite.arguments.heads.as_deref();
    let file = file.context("--hybrid goes by roles of heads; pass --heads FILE")?;
    let heads = HeadProfile::load(file)?;
    heads.check_shape(shape)?;
    heads.check_fingerprint(fingerprint)?;
    ensure!(
        heads.measure().is_some(),
        "{} does not say how stable heads are; measure them by `heterokv profile --heads`",
        file.display()
    );
    Ok(heads)
}

fn made_up(shape: &KvShape, fingerprint: &str) -> Result<HeadProfile> {
    let num_kv_heads = shape.heads.num_kv_heads;
    let measure = HeadMeasure {
        prompt_tokens: 100,
        steps: 1,
        top_k: 10,
        tau_stable: 0.5,
        tau_sim: 0.5,
        similarity: SimilarityAt::Prompt,
    };
    let role = |place: usize| match (place / num_kv_heads % 2, place % num_kv_heads) {
        (0, 0) => HeadRole::Pivot,
        (0, _) => HeadRole::Satellite { pivot: 0 },
        (_, 0) => HeadRole::Volatile,
        _ => HeadRole::Anchor,
    };
    let num_heads = shape.num_layers * num_kv_heads;
    let stability = (0..num_heads).map(|place| (place + 1) as f64 / num_heads as f64).collect();
    let roles = (0..num_heads).map(role).collect();
    Ok(HeadProfile::new(fingerprint, shape, measure, stability, roles)?)
}

/// So many tokens of the text, from [`MEASURED_FROM`] on or the last ones.
fn measured_text(tokens: &[u32], num_tokens: usize) -> Result<&[u32]> {
    let last = tokens.len().checked_sub(num_tokens);
    let last = last.with_context(|| {
        format!(
            "the text has {} tokens, {num_tokens} are needed; pass a longer one by --corpus, or give a shorter --contexts",
            tokens.len()
        )
    })?;
    let first = last.min(MEASURED_FROM);
    Ok(&tokens[first..first + num_tokens])
}

/// A cache whose bytes are shared out.
struct Parent {
    entry: Entry,
    config: HcaConfig,
    format: KeyFormat,
}

impl Parent {
    fn new(spec: &str, fit: Fit<'_>) -> Result<Self> {
        let entry = fit.specs(&[spec.to_owned()])?.remove(0);
        let config = match entry.candidate().map(|candidate| &candidate.config) {
            Some(CacheConfig::Hca(config)) if config.evict.is_none() => config.clone(),
            _ => anyhow::bail!(
                "--hybrid shares out bytes of coded keys of all tokens; {spec} has none here"
            ),
        };
        match config.keys {
            Keys::Uniform(format @ KeyFormat::Alloc { .. }) => Ok(Self { entry, config, format }),
            _ => anyhow::bail!("--hybrid shares out bytes of alloc keys, which {spec} has none of"),
        }
    }
}

/// One context.
struct Hybrid<'a> {
    suite: &'a Suite<'a>,
    model: &'a Model,
    shape: &'a KvShape,
    fingerprint: &'a str,
    heads: &'a HeadProfile,
    context: usize,
    /// The text by which errors are measured.
    text: &'a [u32],
    /// Where mixes are kept, by their numbers.
    folder: TempDir,
    num_mixes: usize,
    /// What errors cost, as far as it was asked for.
    costs: Vec<(SensitivitySettings, Sensitivity)>,
}

impl Hybrid<'_> {
    /// A cache, and what becomes of it under every share.
    fn family(&mut self, parent: &Parent, fit: Fit<'_>) -> Result<Vec<Entry>> {
        let spec = &parent.entry.name;
        let mut family = fit.specs(std::slice::from_ref(spec))?;
        let promise = family[0].candidate().and_then(|candidate| candidate.promise);
        let config = CacheConfig::Hca(parent.config.clone());
        let most_bytes = CachePlan::new(&config, self.shape, self.context)?.most_device_bytes;
        for share in Share::ALL {
            let formats = self.formats(share, parent)?;
            let file = self.folder.path().join(format!("{}.mix", self.num_mixes));
            self.num_mixes += 1;
            let mix = KeyMix::create(&file, self.fingerprint, self.shape, formats)?;
            let config = HcaConfig { keys: Keys::Mix(Arc::new(mix)), ..parent.config.clone() };
            let config = CacheConfig::Hca(config);
            let own = CachePlan::new(&config, self.shape, self.context)?.most_device_bytes;
            ensure!(
                own <= most_bytes,
                "{spec} {} takes {own} bytes, not {most_bytes}",
                share.words()
            );
            let candidate = Candidate {
                name: format!("{spec} {}", share.words()),
                promise,
                config,
                profile: None,
                replace: None,
            };
            let (name, standing) = (candidate.name.clone(), Standing::Ready(Box::new(candidate)));
            family.push(Entry { name, preset: None, ratio: None, standing });
        }
        Ok(family)
    }

    /// A format for each head `[num_layers, num_kv_heads]`, together of at most as many bytes as the parent's.
    fn formats(&mut self, share: Share, parent: &Parent) -> Result<Vec<KeyFormat>> {
        let head_dim = self.shape.heads.head_dim;
        let weights: Option<Vec<f64>> = (0..self.shape.num_layers)
            .flat_map(|layer| (0..self.shape.heads.num_kv_heads).map(move |head| (layer, head)))
            .map(|(layer, head)| {
                share.weight(self.heads.role(layer, head), self.heads.stability(layer, head)?)
            })
            .collect();
        match weights {
            Some(weights) => shared_out(parent.format, head_dim, &weights),
            None => {
                let context = self.context;
                let bits = parent.format.bits_per_element(head_dim, context)?;
                Ok(self.sensitivity(&parent.config)?.mix(bits, context)?)
            }
        }
    }

    /// What errors of keys cost in caches with these options, measured once.
    fn sensitivity(&mut self, config: &HcaConfig) -> Result<&Sensitivity> {
        let head_dim = self.shape.heads.head_dim;
        // Four bytes of a row apart.
        let formats = (1..=head_dim).step_by(4);
        let formats = formats.filter_map(|bytes| KeyFormat::alloc_of_row_bytes(bytes, head_dim));
        let settings = SensitivitySettings {
            formats: formats.collect(),
            exact: ExactTokens { sinks: config.sinks, recent: config.recent },
            key_use: match config.rescore {
                None => KeyUse::Attend,
                Some(_) => KeyUse::Select(config.selector()?),
            },
            num_steps: ASKED_TOKENS,
        };
        let known = self.costs.iter().position(|(of, _)| *of == settings);
        let place = match known {
            Some(place) => place,
            None => {
                self.suite.say("hybrid: what errors of keys cost");
                let costs = measure_sensitivity(self.model, self.text, &settings, None)?;
                self.costs.push((settings, costs));
                self.costs.len() - 1
            }
        };
        Ok(&self.costs[place].1)
    }

    /// The rows of all caches, which take the context in together.
    fn measure(&self, entries: &[&Entry], jobs: &[Job]) -> Result<Vec<Row>> {
        let candidates = entries.iter().filter_map(|entry| entry.candidate()).cloned();
        let candidates: Vec<Candidate<'static>> = candidates.collect();
        let mut needed = 0;
        for candidate in &candidates {
            let plan = CachePlan::new(&candidate.config, self.shape, self.context + NUM_STEPS)?;
            let device = plan.most_device_bytes + plan.score_scratch_bytes;
            needed += (2 * device + plan.host_bytes) as u64;
        }
        if let Some(lack) = memory::lack(needed) {
            anyhow::bail!("{lack}; name fewer caches by --cache, or give a shorter --contexts");
        }
        let Suite { arguments, opened, environment, level, .. } = *self.suite;
        let run = opened.run(environment, level, arguments.threads)?;
        let engine = Engine { model: self.model, tokenizer: &opened.text.tokenizer };
        let mut rows = Rows { suite: self.suite, rows: Vec::new() };
        evaluate(engine, jobs, &candidates, &run, &mut rows)?;
        Ok(rows.rows)
    }
}

/// The bytes of the codes of as many heads as there are weights, each in the format `alloc` of a parent, shared out by
/// weight: a format for each head. What is not code takes as many bytes in all.
fn shared_out(parent: KeyFormat, head_dim: usize, weights: &[f64]) -> Result<Vec<KeyFormat>> {
    let layout = parent.layout(head_dim)?;
    // All but the byte of scale.
    let code_bytes = layout.block_bytes / layout.block_tokens - 1;
    let bounds = BITS.map(|bits| (bits * head_dim as f64 / 8.0) as usize);
    let [least, most] = bounds.map(|bytes| vec![bytes; weights.len()]);
    let shares = apportion(code_bytes * weights.len(), weights, &least, &most, 1)?;
    let format = |bytes: &usize| KeyFormat::alloc_of_row_bytes(bytes + 1, head_dim);
    let formats: Option<Vec<KeyFormat>> = shares.iter().map(format).collect();
    formats.with_context(|| format!("{parent} rows of {head_dim} channels cannot be shared out"))
}

/// Rows as they come.
struct Rows<'a> {
    suite: &'a Suite<'a>,
    rows: Vec<Row>,
}

impl Watcher for Rows<'_> {
    fn is_done(&mut self, _: &str, _: &Sample, _: &str, _: &str) -> bool {
        false
    }

    fn begins(&mut self, _: usize, _: usize, sample: &Sample) {
        self.suite.say(&format!("hybrid: {}", sample.name));
    }

    fn reads(&mut self, _: usize, _: usize) {}

    fn probes(&mut self, _: &Job, _: usize, _: usize) {}

    fn row(&mut self, row: Row) -> heterokv_eval::Result<()> {
        self.rows.push(row);
        Ok(())
    }
}

fn sheet(model: &str, offsets: &[usize]) -> Sheet {
    let title = format!("Bytes of coded keys shared out among heads, on {model}");
    let mut columns = ["context", "cache", "ratio"].map(str::to_owned).to_vec();
    for offset in offsets {
        columns.extend([format!("KL from {offset}"), format!("recall KL from {offset}")]);
    }
    columns.extend(["of the first, least", "most", "note"].map(str::to_owned));
    Sheet::new(title, &columns)
}

/// The rows of a family, whose first is what the others are held against: losses at every offset, and the least and the
/// most of them over its own.
fn add_rows(sheet: &mut Sheet, context: usize, family: &[Entry], boards: &[Board<'_>]) {
    let losses = |entry: &Entry| -> Option<Vec<f64>> {
        let of = boards.iter().map(|board| board.measured(entry, context));
        let of: Vec<_> = of.collect::<Option<_>>()?;
        Some(of.iter().flat_map(|losses| [losses.plain, losses.recall]).collect())
    };
    let first = losses(&family[0]);
    for entry in family {
        let own = losses(entry);
        let ratio =
            boards.iter().filter_map(|board| board.ratio(entry, context)).fold(0.0, f64::max);
        let mut cells = vec![Cell::Number(context as f64, 0), Cell::text(&entry.name)];
        let (least, most) = match (&own, &first) {
            (Some(own), Some(first)) => {
                let times = own.iter().zip(first).map(|(own, first)| own / first);
                let range = times.fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), x| {
                    (least.min(x), most.max(x))
                });
                cells.push(Cell::Number(100.0 * ratio, 1));
                cells.extend(own.iter().map(|&kl| Cell::Scientific(kl)));
                (Cell::Number(range.0, 2), Cell::Number(range.1, 2))
            }
            _ => {
                cells.extend((0..=2 * boards.len()).map(|_| Cell::text("")));
                (Cell::text(""), Cell::text(""))
            }
        };
        let note = match &entry.standing {
            Standing::Unreachable { least } => format!("unreachable, {least:.1} % at least"),
            standing => standing.word().to_owned(),
        };
        cells.extend([least, most, Cell::text(note)]);
        sheet.push(cells);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_bytes(format: KeyFormat) -> usize {
        let layout = format.layout(64).expect("it holds such keys");
        layout.block_bytes / layout.block_tokens
    }

    #[test]
    fn what_is_shared_out_is_what_there_was() {
        let parent = KeyFormat::alloc_of_row_bytes(28, 64).expect("there is one");
        for weights in [[1.0, 2.0, 3.0, 4.0], [1e-6, 1.0, 1.0, 1e6], [7.0, 0.1, 0.3, 0.2]] {
            let formats = shared_out(parent, 64, &weights).expect("there is enough");
            let bytes: Vec<usize> = formats.iter().map(|&format| row_bytes(format)).collect();
            assert_eq!(bytes.iter().sum::<usize>(), 4 * 28, "{bytes:?}");
            for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
                assert!(weights[a] > weights[b] || bytes[a] <= bytes[b] + 1, "{bytes:?}");
            }
        }
        assert_eq!(shared_out(parent, 64, &[0.3; 5]).expect("there is"), [parent; 5]);
    }

    #[test]
    fn roles_decide_and_turn_round() {
        let roles = [HeadRole::Volatile, HeadRole::Pivot, HeadRole::Anchor];
        let of = |share: Share| roles.map(|role| share.weight(role, 0.5).expect("roles say it"));
        let [volatile, pivot, anchor] = of(Share::Roles);
        assert!(volatile > pivot && pivot > anchor);
        let [volatile, pivot, anchor] = of(Share::RolesReversed);
        assert!(volatile < pivot && pivot < anchor);
        let by_stability = |share: Share| {
            [0.2, 0.8].map(|stability| share.weight(HeadRole::Anchor, stability).expect("it does"))
        };
        let [low, high] = by_stability(Share::Unstable);
        assert!((low / high - 4.0).abs() < 1e-9);
        let [low, high] = by_stability(Share::Stable);
        assert!((high / low - 4.0).abs() < 1e-9);
        assert_eq!(Share::Errors.weight(HeadRole::Anchor, 0.5), None);
    }
}
