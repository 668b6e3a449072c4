//! Records of JSONL files, one a line, and which of them are taken.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::NAME;
use super::dataset::{self, Dataset};
use crate::task::Settings;
use crate::{Error, Result};

/// What is read of a line. Fields that nothing here needs may be missing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Record {
    /// The question; may be empty.
    pub(super) input: String,
    /// The long text.
    pub(super) context: String,
    /// Right answers; at least one.
    pub(super) answers: Vec<String>,
    /// Name of the dataset.
    pub(super) dataset: String,
    /// Names of the classes, where there are classes.
    pub(super) all_classes: Option<Vec<String>>,
    /// Tells it from the others of its dataset.
    #[serde(rename = "_id")]
    pub(super) id: String,
}

/// As many records of every dataset as are asked for, or all there are: those of the lowest [`rank`], which are the
/// same whatever the order of lines. By dataset, then by rank. Every line is checked; memory is that of the records
/// taken, of one line, and of all ids.
pub(super) fn drawn(path: &Path, settings: &Settings) -> Result<Vec<(&'static Dataset, Record)>> {
    // By place and name of the dataset, then by rank and id.
    let mut taken: BTreeMap<(usize, String), BTreeMap<(u64, String), Record>> = BTreeMap::new();
    let mut ids = HashSet::new();
    for file in files(path)? {
        visit_records(&file, |place, record| {
            let key = (record.dataset.clone(), record.id.clone());
            if !ids.insert(key) {
                return Err(format!(
                    "the `_id` {} of {} was there before",
                    record.id, record.dataset
                ));
            }
            let of_dataset = taken.entry((place, record.dataset.clone())).or_default();
            of_dataset.insert((rank(settings.seed, &record), record.id.clone()), record);
            if of_dataset.len() > settings.num_samples {
                of_dataset.pop_last();
            }
            Ok(())
        })?;
    }
    let of_dataset = |((place, _), records): ((usize, String), BTreeMap<_, Record>)| {
        records.into_values().map(move |record| (&dataset::all()[place], record))
    };
    Ok(taken.into_iter().flat_map(of_dataset).collect())
}

/// `path`, or the files in it that are named after datasets, in LongBench's order.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = path.metadata().map_err(|source| Error::Io { path: path.to_owned(), source })?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let named = dataset::all().iter().map(|dataset| path.join(format!("{}.jsonl", dataset.name)));
    let files: Vec<PathBuf> = named.filter(|file| file.is_file()).collect();
    if files.is_empty() {
        return Err(Error::NoRecords {
            path: path.to_owned(),
            task: NAME,
            needed: "it should hold files like narrativeqa.jsonl, each named after its dataset",
        });
    }
    Ok(files)
}

/// Shows every record of a file to `visit`, with the place of its dataset; what `visit` has against one is the
/// reason of an [`Error::BadLine`]. Blank lines are passed over.
fn visit_records(
    path: &Path,
    mut visit: impl FnMut(usize, Record) -> Result<(), String>,
) -> Result<()> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(Error::NoFile { path: path.to_owned() });
    }
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let (mut bytes, mut line, mut num_records) = (Vec::new(), 0, 0_usize);
    while file.read_until(b'\n', &mut bytes).map_err(failed)? > 0 {
        line += 1;
        if !bytes.trim_ascii().is_empty() {
            parsed(&bytes)
                .and_then(|(place, record)| visit(place, record))
                .map_err(|reason| Error::BadLine { path: path.to_owned(), line, reason })?;
            num_records += 1;
        }
        bytes.clear();
    }
    if num_records == 0 {
        return Err(Error::NoRecords {
            path: path.to_owned(),
            task: NAME,
            needed: "it should have a JSON object on every line",
        });
    }
    Ok(())
}

/// The record of a line, with the place of its dataset, or what is wrong with it.
fn parsed(bytes: &[u8]) -> Result<(usize, Record), String> {
    let text = str::from_utf8(bytes)
        .map_err(|error| format!("its byte {} is not UTF-8", error.valid_up_to() + 1))?;
    let record: Record = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        // The library counts lines too, and knows of one.
        let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
        format!("{what} (column {})", error.column())
    })?;
    let Some((place, dataset)) = dataset::named(&record.dataset) else {
        let known: Vec<&str> = dataset::all().iter().map(|dataset| &*dataset.name).collect();
        return Err(format!(
            "there is no dataset `{}`; there are {}",
            record.dataset,
            known.join(", ")
        ));
    };
    if record.answers.is_empty() {
        return Err("`answers` is empty".to_owned());
    }
    if dataset.has_classes() && record.all_classes.as_ref().is_none_or(Vec::is_empty) {
        return Err(format!("`all_classes` has no class, and {} needs them", record.dataset));
    }
    Ok((place, record))
}

/// A number that depends on seed, dataset and id alone, as good as drawn by chance: the mixing step of SplitMix64
/// (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), once for every byte.
fn rank(seed: u64, record: &Record) -> u64 {
    let mix = |state: u64| {
        let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^ (state >> 31)
    };
    let bytes = record.dataset.bytes().chain([b'/']).chain(record.id.bytes());
    bytes.fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)))
}
