//! A results file: one [`Row`] a line, appended as they come, from which a stopped run goes on.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::row::{Answer, Outcome, ROW_VERSION, Row};
use crate::{Error, Result};

/// What tells a measurement from every other: task, sample, length, cache, and [`Row::inputs`].
type Key = (String, String, usize, String, String);

/// A results file that is being written, by nobody else at the same time.
///
/// A row is written whole, with its line end, and is on the disk before the next is measured. Whatever ends the
/// program leaves rows that are whole, and a piece of one at most, which the next run cuts off.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: File,
    rows: Vec<Row>,
    done: HashSet<Key>,
}

impl Results {
    /// Opens `path` to go on with it, or begins it.
    ///
    /// # Errors
    /// [`Error::NoFile`] for a folder, a pipe or a device; [`Error::Io`]; [`Error::InUse`] where another program
    /// writes it; [`Error::BadLine`] where a line is no row, other than a last one that is the beginning of one: such
    /// a file is left as it is.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        // What is there is looked at first: to open a pipe is to wait for its other end.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::NoFile { path: path.to_owned() });
        }
        let is_new = !path.exists();
        let options = OpenOptions::new().read(true).append(true).create(true).clone();
        let mut file = options.open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        if is_new {
            sync_folder(path).map_err(io)?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut rows = parse(path, &bytes[..whole])?;
        let torn = &bytes[whole..];
        if !torn.is_empty() {
            match last_line(path, &bytes, whole)? {
                // An editor may have taken its end away.
                Some(row) => {
                    file.write_all(b"\n").map_err(io)?;
                    rows.push(row);
                }
                None => file.set_len(whole as u64).map_err(io)?,
            }
        }
        let done = rows.iter().map(key).collect();
        Ok(Self { path: path.to_owned(), file, rows, done })
    }

    /// The rows, in the order in which they were written.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether there is a row of this measurement; the arguments are the fields of [`Row`] of these names.
    #[must_use]
    pub fn has(&self, task: &str, sample: &str, context: usize, cache: &str, inputs: &str) -> bool {
        let [task, sample, cache, inputs] = [task, sample, cache, inputs].map(str::to_owned);
        self.done.contains(&(task, sample, context, cache, inputs))
    }

    /// Writes a row behind the others.
    ///
    /// # Errors
    /// [`Error::SummaryNotFinite`] for one that JSON has no form for, and [`Error::Io`]; the file is sound all the same.
    pub fn push(&mut self, row: Row) -> Result<()> {
        if let Outcome::Divergence { summary, .. } = &row.outcome
            && !summary.is_finite()
        {
            let Row { task, sample, cache, .. } = row;
            return Err(Error::SummaryNotFinite { task, sample, cache });
        }
        let mut line = serde_json::to_vec(&row)
            .map_err(|error| Error::Io { path: self.path.clone(), source: error.into() })?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.done.insert(key(&row));
        self.rows.push(row);
        Ok(())
    }
}

/// Sees that the name of a new file is on the disk, as its contents will be.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if cfg!(windows) {
        // There a folder cannot be opened as a file, and its names are kept with the file.
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// How every row begins.
const ROW_BEGINS: &[u8] = br#"{"version":1,"task":"#;

/// What stands behind the last line end, from byte `start` on: a row that is whole, or the beginning of one (none).
fn last_line(path: &Path, bytes: &[u8], start: usize) -> Result<Option<Row>> {
    let line = 1 + bytes[..start].iter().filter(|&&byte| byte == b'\n').count();
    let torn = &bytes[start..];
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(torn).is_ok();
    if !is_json && torn.starts_with(&ROW_BEGINS[..torn.len().min(ROW_BEGINS.len())]) {
        return Ok(None);
    }
    row_of(path, line, torn).map(Some)
}

fn key(row: &Row) -> Key {
    (row.task.clone(), row.sample.clone(), row.context, row.cache.clone(), row.inputs.clone())
}

/// The bytes of a file, which a folder, a pipe and a device are not: some of these never end.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    if !path.metadata().map_err(io)?.is_file() {
        return Err(Error::NoFile { path: path.to_owned() });
    }
    std::fs::read(path).map_err(io)
}

/// The rows of a results file. The beginning of a row behind the last line end, which a stopped run leaves, is passed
/// over.
///
/// # Errors
/// [`Error::Io`], and [`Error::BadLine`] for a line that is no row.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let bytes = read_file(path)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let mut rows = parse(path, &bytes[..whole])?;
    if whole < bytes.len() {
        rows.extend(last_line(path, &bytes, whole)?);
    }
    Ok(rows)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Row>> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    lines.map(|(index, line)| row_of(path, index + 1, line)).collect()
}

/// The row in a line.
fn row_of(path: &Path, line: usize, text: &[u8]) -> Result<Row> {
    let bad = |reason: String| Error::BadLine { path: path.to_owned(), line, reason };
    let row: Row = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
    if row.version != ROW_VERSION {
        return Err(bad(format!(
            "it is of version {}, not {ROW_VERSION}; give another file",
            row.version
        )));
    }
    let is_share = |score: &f64| (0.0..=1.0).contains(score);
    match &row.outcome {
        Outcome::Divergence { steps, .. } if !steps.is_sound() => {
            Err(bad("its steps are not lists of one length of finite numbers".to_owned()))
        }
        Outcome::Divergence { steps, summary } if !summary.is_of(steps) => {
            Err(bad("its summary is not that of its steps".to_owned()))
        }
        Outcome::Answers { score, answers }
            if !is_share(score) || !answers.iter().all(|answer| is_share(&answer.score)) =>
        {
            Err(bad("a score is not from 0 to 1".to_owned()))
        }
        Outcome::Answers { score, answers } if !is_mean(*score, answers) => {
            Err(bad("its score is not the mean of its answers'".to_owned()))
        }
        _ => Ok(row),
    }
}

fn is_mean(score: f64, answers: &[Answer]) -> bool {
    let sum: f64 = answers.iter().map(|answer| answer.score).sum();
    (score - sum / answers.len().max(1) as f64).abs() <= 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rows::divergence;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        (folder, path)
    }

    fn named(sample: &str) -> Row {
        Row { sample: sample.to_owned(), ..divergence("kl", 100, "hca:25%", &[0.01, 0.1 + 0.2]) }
    }

    #[test]
    fn rows_are_there_again_and_known_as_done() {
        let (_folder, path) = file();
        let rows = ["a", "b"].map(named);
        let mut results = Results::open(&path).unwrap();
        rows.iter().for_each(|row| results.push(row.clone()).unwrap());
        drop(results);
        let results = Results::open(&path).unwrap();
        assert_eq!(results.rows(), rows);
        assert_eq!(read_rows(&path).unwrap(), rows);
        let Row { task, context, cache, inputs, .. } = &rows[0];
        assert!(results.has(task, "b", *context, cache, inputs));
        assert!(!results.has(task, "c", *context, cache, inputs));
        assert!(!results.has(task, "b", *context, cache, "other"));
    }

    #[test]
    fn a_file_cut_anywhere_goes_on_with_the_rows_that_are_whole() {
        let (_folder, path) = file();
        let mut results = Results::open(&path).unwrap();
        for row in ["a", "b"].map(named) {
            results.push(row).unwrap();
        }
        drop(results);
        let whole = std::fs::read(&path).unwrap();
        // Around the first line end, and everywhere behind it.
        for cut in (0..3).chain(whole.len() / 2 - 3..=whole.len()) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let num_ends = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            // A row is whole without its line end, too.
            let num_whole = num_ends + usize::from(whole.get(cut) == Some(&b'\n'));
            assert_eq!(read_rows(&path).unwrap().len(), num_whole);
            let mut results = Results::open(&path).unwrap();
            assert_eq!(results.rows().len(), num_whole);
            for name in ["a", "b"].into_iter().skip(num_whole) {
                results.push(named(name)).unwrap();
            }
            drop(results);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_results_file_is_left_alone() {
        let (_folder, path) = file();
        let row = serde_json::to_string(&named("a")).unwrap();
        let uneven = row.replacen("\"top1\":[", "\"top1\":[1,", 1);
        assert_ne!(uneven, row);
        for (text, line) in [
            ("a letter\n".to_owned(), 1),
            (format!("{row}\n{{\"task\": 3}}\n{row}\n"), 2),
            (format!("{row}\n{row}\nDear"), 3),
            (format!("{row}\n{{\"version\":1,\"task\":\"my precious list\"}}"), 2),
            (format!("{row}\n{}", row.replacen("\"version\":1", "\"version\":2", 1)), 2),
            (format!("{}\n", row.replacen("\"kl_mean\":", "\"kl_mean\":9", 1)), 1),
            (format!("{row}\n{uneven}\n"), 2),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Results::open(&path).unwrap_err();
            assert!(matches!(error, Error::BadLine { line: at, .. } if at == line), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_last_row_without_its_line_end_is_a_row() {
        let (_folder, path) = file();
        let row = serde_json::to_string(&named("a")).unwrap();
        std::fs::write(&path, &row).unwrap();
        assert_eq!(read_rows(&path).unwrap(), [named("a")]);
        let mut results = Results::open(&path).unwrap();
        results.push(named("b")).unwrap();
        assert_eq!(read_rows(&path).unwrap(), ["a", "b"].map(named));
        assert!(row.as_bytes().starts_with(ROW_BEGINS));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_opened() {
        for path in ["/dev/zero", "/"] {
            let error = Results::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, Error::NoFile { .. }), "{error}");
        }
    }

    #[test]
    fn one_program_at_a_time_writes_it() {
        let (_folder, path) = file();
        let results = Results::open(&path).unwrap();
        assert!(matches!(Results::open(&path).unwrap_err(), Error::InUse { .. }));
        drop(results);
        Results::open(&path).unwrap();
    }
}
