//! A run of the suites that make a record: what is measured, printed, kept, and compared.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use heterokv_cache::CacheSpec;
use heterokv_eval::InstalledPeers;
use heterokv_quant::Level;

use crate::args::StepArgs;
use crate::caches::{FULL, PRESETS, TINY};
use crate::compare::{Allowance, compare};
use crate::environment::Environment;
use crate::machine::{self, Sizes};
use crate::memory::Room;
use crate::prompt_rows::PromptRows;
use crate::record::Record;
use crate::selection::Selection;
use crate::settings::Settings;
use crate::subject::{Place, Subject};
use crate::suite::Folder;
use crate::{attention, end_to_end, instructions, model_step, page, peers, tables};

/// Tokens of a text that pass through the model; beyond them a context repeats them. Eight more than the default
/// model was trained for, so that its prefill tells what follows a context of that length.
const REAL_TOKENS: usize = 8192 + 8;

/// What a run has measured so far, in the folder of its results: if it is stopped, `--measured` takes this file.
const UNFINISHED: &str = "unfinished.json";

/// Where records are kept that are to stay.
const RECORDS: &str = "../../docs/bench/record";

/// Measures, or reads what was measured, and does with it what is asked; true unless something became slower, or a kernel needs more
/// instructions than are kept.
///
/// # Errors
/// A wrong answer, a model or text that is needed and cannot be had, and files that cannot be read or written.
pub(crate) fn run(arguments: &StepArgs) -> Result<bool> {
    // Before the work, which would be lost.
    let old = arguments.compare.as_deref().map(Record::load).transpose()?;
    let record = match &arguments.measured {
        Some(path) => Record::load(path)?,
        None => measure(arguments)?,
    };
    if arguments.test {
        println!(
            "{} cases, every answer right; {} left out",
            record.cases.len(),
            record.left_out.len()
        );
    } else {
        print_tables(&record);
    }
    if arguments.measured.is_none() && !arguments.test {
        let folder = match arguments.record {
            true => Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDS),
            false => arguments.out.clone(),
        };
        let place = record.path(&folder, arguments.filter.as_deref());
        let is_old = |old: &Path| is_same_file(old, &place);
        // What the run is held against stays as it is; the new record is kept beside it.
        if arguments.compare.as_deref().is_some_and(is_old) {
            let place = place.with_extension("new.json");
            record.write(&place)?;
            println!("{}", place.display());
        } else {
            println!("{}", record.save(&folder, arguments.filter.as_deref())?.display());
        }
        let unfinished = arguments.out.join(UNFINISHED);
        if unfinished.exists() {
            fs::remove_file(&unfinished)
                .with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
    }
    if arguments.splice {
        splice(&record, page_of)?;
    }
    let is_guarded =
        arguments.measured.is_some() || instructions::guard(&record, arguments.baseline)?;
    let Some(old) = old else { return Ok(is_guarded) };
    let allowance = Allowance { ratio: arguments.allow, across: arguments.across };
    let wanted = Selection::new(arguments.filter.clone());
    let comparison = compare(&record, &old, &wanted, allowance)?;
    println!("\n{}\n{}", comparison.sheet().aligned(), comparison.summary());
    Ok(comparison.is_held() && is_guarded)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b)
}

fn measure(arguments: &StepArgs) -> Result<Record> {
    check(arguments)?;
    // Before the work, which would be lost.
    let scratch = tempfile::tempdir().context("cannot make a folder for files of this run")?;
    let folder: PathBuf = match arguments.test {
        true => scratch.path().to_owned(),
        false => Folder::create(&arguments.out)?.into_path(),
    };
    if arguments.peers {
        return beside_peers(arguments);
    }
    let unfinished = folder.join(UNFINISHED);
    let selection = Selection::new(arguments.filter.clone());
    let wants = |suite: &str| wants_suite(&selection, suite);
    let is_step_wanted = wants(attention::SUITE) || wants(model_step::SUITE);
    let place = match is_step_wanted || wants(end_to_end::SUITE) {
        true => Some(Place::asked(arguments.test, &arguments.model, &arguments.corpus)?),
        false => None,
    };
    let level = Level::detect();
    let pool = machine::threads(arguments.threads)?;
    // Before the work, during which the tree may change.
    let mut record = Record::new(&Environment::detect(level, arguments.threads));
    let settings = Settings {
        selection: selection.clone(),
        caches: caches(arguments),
        contexts: contexts(arguments),
        num_rounds: if arguments.test { 1 } else { arguments.rounds },
        sample_seconds: if arguments.test { 0.0 } else { 5e-3 },
        level,
        pool: &pool,
    };
    // While this process is small: the others have all that is free to themselves.
    if let Some(place) = place.as_ref().filter(|_| wants(end_to_end::SUITE)) {
        let length = end_to_end::Length {
            num_steps: if arguments.test { 4 } else { arguments.steps },
            num_threads: arguments.threads,
        };
        end_to_end::measure(&settings, place, length, &mut record)?;
        record.write(&unfinished)?;
    }
    if is_step_wanted || wants(machine::SUITE) {
        let sizes = match arguments.test {
            true => Sizes::small(1),
            false => Sizes::of_memory(arguments.memory, arguments.rounds),
        };
        settings.say("machine");
        let ceilings = machine::measure(&settings.selection, sizes, &pool, &folder, &mut record)?;
        record.write(&unfinished)?;
        if let Some(place) = place.as_ref().filter(|_| is_step_wanted) {
            let rows = steps(place, arguments.test, &settings, &mut record)?;
            let room = Room::new();
            rows.attention(&settings, &ceilings, room, &mut record)?;
            record.write(&unfinished)?;
            rows.model(&settings, &ceilings, room, &mut record)?;
            record.write(&unfinished)?;
        }
    }
    if wants(instructions::SUITE) {
        instructions::measure(&settings, &mut record)?;
    }
    let filter = arguments.filter.as_deref().unwrap_or_default();
    if let (true, Some(first)) = (record.cases.is_empty(), record.left_out.first()) {
        bail!("nothing could be measured; {}: {}", first.name, first.reason);
    }
    ensure!(
        !record.cases.is_empty(),
        "no case has `{filter}` in its name; suites are {} and quant, and other programs are measured by --peers",
        tables::SUITES
            .iter()
            .filter(|suite| **suite != peers::SUITE)
            .copied()
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(record)
}

/// Ours beside other programs.
fn beside_peers(arguments: &StepArgs) -> Result<Record> {
    let venv = &arguments.peers_folder;
    InstalledPeers::at(venv)?;
    let place = Place::asked(arguments.test, &arguments.model, &arguments.corpus)?;
    let level = Level::detect();
    let pool = machine::threads(arguments.threads)?;
    let mut record = Record::new(&Environment::detect(level, arguments.threads));
    let settings = Settings {
        selection: Selection::new(arguments.filter.clone()),
        caches: caches(arguments),
        contexts: contexts(arguments),
        num_rounds: arguments.rounds.min(peers::MAX_ROUNDS),
        sample_seconds: 0.0,
        level,
        pool: &pool,
    };
    let length = end_to_end::Length { num_steps: arguments.steps, num_threads: arguments.threads };
    peers::measure(&settings, &place, length, venv, &mut record)?;
    ensure!(!record.cases.is_empty(), "no cache of `--peers` has the filter in its name");
    Ok(record)
}

/// What one layer and the whole model are measured on.
struct Steps {
    subject: Subject,
    rows: PromptRows,
    /// Rows of no model in the place of these for one layer: the heads of a tiny model are too short for the presets.
    synthetic: Option<PromptRows>,
}

impl Steps {
    fn attention(
        &self,
        settings: &Settings<'_>,
        ceilings: &machine::Ceilings,
        room: Room,
        record: &mut Record,
    ) -> Result<()> {
        if !wants_suite(&settings.selection, attention::SUITE) {
            return Ok(());
        }
        let Some(synthetic) = &self.synthetic else {
            return attention::measure(settings, &self.rows, ceilings, room, record);
        };
        let settings = Settings { caches: PRESETS.map(str::to_owned).to_vec(), ..settings.clone() };
        attention::measure(&settings, synthetic, ceilings, room, record)
    }

    fn model(
        &self,
        settings: &Settings<'_>,
        ceilings: &machine::Ceilings,
        room: Room,
        record: &mut Record,
    ) -> Result<()> {
        if !wants_suite(&settings.selection, model_step::SUITE) {
            return Ok(());
        }
        model_step::measure(settings, &self.subject, &self.rows, ceilings, room, record)
    }
}

/// The model and its rows of one prompt.
fn steps(
    place: &Place,
    is_test: bool,
    settings: &Settings<'_>,
    record: &mut Record,
) -> Result<Steps> {
    let longest = settings.contexts.iter().copied().max().unwrap_or(REAL_TOKENS);
    let num_tokens = longest.saturating_add(8).min(REAL_TOKENS);
    let subject = place.load(num_tokens, settings.level)?;
    settings.say(&format!("prefill of {num_tokens} tokens"));
    record.subject = subject.name.clone();
    let rows = settings.pool.install(|| PromptRows::of_model(&subject.model, &subject.tokens))?;
    let synthetic = is_test.then(|| PromptRows::synthetic(num_tokens)).transpose()?;
    Ok(Steps { subject, rows, synthetic })
}

/// Whether a case of the suite may be wanted: unless the filter names another.
fn wants_suite(selection: &Selection, suite: &str) -> bool {
    !tables::SUITES.iter().any(|other| *other != suite && selection.names(other))
}

/// The caches asked for behind `full`, or all presets.
fn caches(arguments: &StepArgs) -> Vec<String> {
    let asked = match &arguments.caches[..] {
        [] if arguments.test => TINY.map(str::to_owned).to_vec(),
        [] if arguments.peers => peers::OURS.map(str::to_owned).to_vec(),
        [] => PRESETS.map(str::to_owned).to_vec(),
        some => some.to_vec(),
    };
    let others = asked.into_iter().filter(|spec| spec != FULL);
    std::iter::once(FULL.to_owned()).chain(others).collect()
}

/// Refuses caches that are none, and what is named twice: a case has one name.
fn check(arguments: &StepArgs) -> Result<()> {
    for (place, spec) in arguments.caches.iter().enumerate() {
        let parsed: Result<CacheSpec, _> = spec.parse();
        parsed.with_context(|| format!("--cache {spec}"))?;
        ensure!(
            !arguments.caches[..place].contains(spec),
            "--cache {spec} is given twice; once is enough"
        );
    }
    for (place, context) in arguments.contexts.iter().enumerate() {
        let before = &arguments.contexts[..place];
        ensure!(!before.contains(context), "--contexts has {context} twice; once is enough");
    }
    Ok(())
}

/// The contexts asked for; where only the answers are tested, a few short ones.
fn contexts(arguments: &StepArgs) -> Vec<usize> {
    match &arguments.contexts[..] {
        [] if arguments.test => vec![96, 512],
        some => some.to_vec(),
    }
}

fn print_tables(record: &Record) {
    for suite in tables::SUITES {
        tables::of_suite(record, suite).iter().for_each(|sheet| println!("\n{}", sheet.aligned()));
    }
    if !record.left_out.is_empty() {
        println!("\n{}", tables::left_out(record).aligned());
    }
}

/// The page that has the tables of a suite.
fn page_of(suite: &str) -> PathBuf {
    if suite == peers::SUITE { page::readme_path() } else { page::report_path() }
}

/// Puts the tables of every suite that was measured between its marks in the suite's page.
fn splice(record: &Record, page_of: impl Fn(&str) -> PathBuf) -> Result<()> {
    for suite in tables::SUITES {
        let sheets = tables::of_suite(record, suite);
        if sheets.is_empty() {
            continue;
        }
        let mut content = format!("```sh\n{}\n```\n\n", record.command);
        let made = [("date", &record.date), ("commit", &record.commit), ("on", &record.subject)];
        let machine = record.environment.iter().map(|(name, value)| (name.as_str(), value));
        for (name, value) in made.into_iter().chain(machine).filter(|(_, value)| !value.is_empty())
        {
            content = format!("{content}- {name}: {value}\n");
        }
        for sheet in sheets {
            content = format!("{content}\n{}", sheet.markdown());
        }
        let left_out: Vec<_> =
            record.left_out.iter().filter(|left_out| left_out.name.starts_with(suite)).collect();
        for left_out in left_out {
            content = format!("{content}\nLeft out: `{}`: {}\n", left_out.name, left_out.reason);
        }
        page::splice(&page_of(suite), suite, &content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Case;

    #[test]
    fn a_filter_reaches_the_suites_that_it_may_mean() {
        let wanted = |filter: &str| -> Vec<&str> {
            let selection = Selection::new(Some(filter.to_owned()));
            tables::SUITES.into_iter().filter(|suite| wants_suite(&selection, suite)).collect()
        };
        assert_eq!(wanted("model"), ["model"]);
        assert_eq!(wanted("attention/full@512"), ["attention"]);
        assert_eq!(wanted("full@512").len(), tables::SUITES.len());
        assert_eq!(wanted("end-to-end/decode"), ["end-to-end"]);
    }

    #[test]
    fn the_pages_have_their_marks_and_take_a_record() {
        let folder = tempfile::tempdir().expect("a folder");
        let copy_of = |suite: &str| {
            let page = page_of(suite);
            folder.path().join(page.file_name().expect("it has a name"))
        };
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 1));
        for suite in tables::SUITES {
            std::fs::copy(page_of(suite), copy_of(suite)).expect("the page is there");
            for phase in ["prefill", "decode"] {
                let name = format!("{suite}/{phase}/x-marks-{suite}");
                let case = Case::new(suite, name);
                let case = case.with("device_bytes_read", 1.0).with("rss_peak_bytes", 1.0);
                record.cases.push(Case { cache: Some(format!("x-marks-{suite}")), ..case });
            }
        }
        splice(&record, copy_of).expect("they have marks for every suite");
        for suite in tables::SUITES {
            let text = std::fs::read_to_string(copy_of(suite)).expect("it is there");
            assert!(text.contains(&format!("x-marks-{suite}")), "{suite}");
        }
    }
}
