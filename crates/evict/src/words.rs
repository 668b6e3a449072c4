//! Words for the values of an enum: one table reads and writes them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The value that `word` names in `table`.
pub(crate) fn find<T: Copy>(
    what: &'static str,
    word: &str,
    table: &[(&'static str, T)],
) -> Result<T> {
    let found = table.iter().find(|(name, _)| *name == word);
    found.map(|&(_, value)| value).ok_or_else(|| unknown(what, word, &names(table)))
}

/// Writes the word of `value`, which `table` has.
pub(crate) fn write<T: PartialEq>(
    f: &mut fmt::Formatter<'_>,
    value: &T,
    table: &[(&'static str, T)],
) -> fmt::Result {
    let name = table.iter().find(|(_, known)| known == value).map(|(name, _)| *name);
    f.write_str(name.ok_or(fmt::Error)?)
}

/// The number behind the colon of `word`.
pub(crate) fn number<T: FromStr>(
    what: &'static str,
    word: &str,
    number: &str,
    known: &str,
) -> Result<T> {
    number.parse().map_err(|_| unknown(what, word, known))
}

pub(crate) fn unknown(what: &'static str, word: &str, known: &str) -> Error {
    Error::UnknownWord { what, word: word.to_owned(), known: known.to_owned() }
}

fn names<T>(table: &[(&'static str, T)]) -> String {
    table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
