//! A results file: one [`Row`] a line, appended as they come, from which a stopped run goes on.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::row::{Outcome, Row};
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
    /// [`Error::Io`]; [`Error::InUse`] where another program writes it; [`Error::BadLine`] where a line other than
    /// an unfinished last one is no row: such a file is left as it is.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let options = OpenOptions::new().read(true).append(true).create(true).clone();
        let mut file = options.open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let rows = parse(path, &bytes[..whole])?;
        let torn = &bytes[whole..];
        if !torn.is_empty() {
            // Only what was to become a row is cut off; anything else is somebody's text.
            if !torn.starts_with(&ROW_BEGINS[..torn.len().min(ROW_BEGINS.len())]) {
                let reason = "it has no line end and is no row; give another file".to_owned();
                return Err(Error::BadLine { path: path.to_owned(), line: rows.len() + 1, reason });
            }
            file.set_len(whole as u64).map_err(io)?;
            file.seek(SeekFrom::End(0)).map_err(io)?;
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
    /// [`Error::Io`]; the file is sound all the same.
    pub fn push(&mut self, row: Row) -> Result<()> {
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

/// How every row begins.
const ROW_BEGINS: &[u8] = br#"{"task":"#;

fn key(row: &Row) -> Key {
    (row.task.clone(), row.sample.clone(), row.context, row.cache.clone(), row.inputs.clone())
}

/// The rows of a results file. A last line without its end, which a stopped run leaves, is passed over.
///
/// # Errors
/// [`Error::Io`], and [`Error::BadLine`] for a line that is no row.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let bytes =
        std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    parse(path, &bytes[..whole])
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Row>> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let row = |(index, line): (usize, &[u8])| {
        let bad =
            |reason: String| Error::BadLine { path: path.to_owned(), line: index + 1, reason };
        let row: Row = serde_json::from_slice(line).map_err(|error| bad(error.to_string()))?;
        match &row.outcome {
            Outcome::Divergence { steps, .. } if steps.is_empty() || !steps.is_sound() => {
                Err(bad("its steps are not lists of one length of finite numbers".to_owned()))
            }
            _ => Ok(row),
        }
    };
    lines.map(row).collect()
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
            let num_whole = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
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
            (format!("{row}\n{uneven}\n"), 2),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Results::open(&path).unwrap_err();
            assert!(matches!(error, Error::BadLine { line: at, .. } if at == line), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
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
