//! What can go wrong in this crate.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate. Clones share their source: one failed read may be many readers' error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system gave no memory, or the limit of an arena or the budget of a store is reached
    /// by what is held for good.
    #[error(
        "the {arena} arena cannot give {requested_bytes} bytes more, {in_use_bytes} are in use; \
         use a shorter context, a smaller cache spec or a larger limit"
    )]
    OutOfMemory {
        /// Name of the arena; that of a store is `host`.
        arena: &'static str,
        /// Bytes asked for.
        requested_bytes: usize,
        /// Bytes in use.
        in_use_bytes: usize,
    },
    /// A row that is not in the store.
    #[error("row {row} was asked for, layer {layer}, KV head {kv_head} holds {num_rows}")]
    NoSuchRow {
        /// Position asked for.
        row: u32,
        /// Layer.
        layer: usize,
        /// KV head.
        kv_head: usize,
        /// Rows held.
        num_rows: usize,
    },
    /// Positions of rows that are to ascend, each once, and do not.
    #[error(
        "row {row} stands behind row {before} in a list of rows of layer {layer}, KV head {kv_head}; give their positions \
         in ascending order, each once"
    )]
    RowOrder {
        /// The position.
        row: u32,
        /// The position before it.
        before: u32,
        /// Layer.
        layer: usize,
        /// KV head.
        kv_head: usize,
    },
    /// A row cannot be encoded.
    #[error("layer {layer}, KV head {kv_head}: {source}")]
    Encode {
        /// Layer.
        layer: usize,
        /// KV head.
        kv_head: usize,
        /// The reason.
        source: Arc<heterokv_quant::Error>,
    },
    /// A shape or an option of a store that no store can have.
    #[error("a store cannot have a {what} of {found}; it takes {least} to {most}")]
    OutOfRange {
        /// What it is.
        what: &'static str,
        /// What was asked for.
        found: usize,
        /// The least that can be had.
        least: usize,
        /// The most that can be had.
        most: usize,
    },
    /// A new file of a store would need a number after the last that there is.
    #[error(
        "no file can follow {}, whose number is the last; remove it if nothing saved lies in it, or use another \
         folder, and open the store again",
        path.display()
    )]
    LastFile {
        /// The file that has the number.
        path: PathBuf,
    },
    /// A file or folder could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A page could not be read from disk. It may be there another time.
    #[error("cannot read {page}: {source}")]
    ReadPage {
        /// The page.
        page: PageName,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A page could not be written to disk. It is still in memory, and nothing is lost.
    #[error("cannot write {page}: {source}")]
    WritePage {
        /// The page.
        page: PageName,
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// What lies on disk is not the page that was written; it was not read as data.
    #[error("{page} is damaged on disk: {damage}")]
    DamagedPage {
        /// The page.
        page: PageName,
        /// What is wrong.
        damage: Damage,
    },
    /// A saved sequence is damaged.
    #[error("the saved sequence `{name}` is damaged: {damage}")]
    DamagedSave {
        /// Its name.
        name: String,
        /// What is wrong.
        damage: Damage,
    },
    /// What is saved beside the rows of a sequence is damaged, or not what was asked for.
    #[error(
        "what is saved with the sequence `{name}` is damaged: {damage}; load its rows alone, or bring its folder back \
         from a copy"
    )]
    DamagedAttachment {
        /// The sequence's name.
        name: String,
        /// What is wrong.
        damage: Damage,
    },
    /// Nothing is saved with a sequence beside its rows.
    #[error(
        "nothing is saved with the sequence `{name}` beside its rows; load these alone, or save it with \
         `Sequence::save_with`"
    )]
    NoAttachment {
        /// The sequence's name.
        name: String,
    },
    /// A saved sequence is of another model, format or shape than the store.
    #[error("the saved sequence `{name}` is of another store: it has {found}, this one {expected}")]
    ForeignSave {
        /// Its name.
        name: String,
        /// The store that it was asked of.
        expected: String,
        /// The store that it is of.
        found: String,
    },
    /// Nothing is saved under a name.
    #[error("no sequence is saved as `{name}`")]
    NoSuchSave {
        /// The name.
        name: String,
    },
    /// A name that no sequence can be saved under.
    #[error("`{name}` cannot be a name: it takes 1 to 64 letters, digits, `-` and `_`")]
    BadName {
        /// The name.
        name: String,
    },
    /// What needs a disk was asked of a store without one.
    #[error("the store has no disk; open it with one, `StoreOptions::disk`")]
    NoDisk,
    /// The store was shut down.
    #[error("the store is shut down")]
    Closed,
    /// The system gives no thread that could copy rows in the background.
    #[error(
        "no thread can be started to fetch rows: {source}; read them instead, or end other threads"
    )]
    NoThread {
        /// What the system says.
        source: Arc<io::Error>,
    },
    /// A worker panicked. What it was to read or write is as it was before.
    #[error("a worker of the store panicked")]
    WorkerPanicked {
        /// The page that it was to read, if it was to read one.
        page: Option<PageName>,
    },
}

impl Error {
    /// Refuses an option outside its range.
    pub(crate) fn unless_within(
        what: &'static str,
        found: usize,
        range: RangeInclusive<usize>,
    ) -> Result<()> {
        let (&least, &most) = (range.start(), range.end());
        let error = || Self::OutOfRange { what, found, least, most };
        range.contains(&found).then_some(()).ok_or_else(error)
    }
}

/// Where a page belongs. A fork shares the pages of its parent under the parent's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageName {
    /// Number of the sequence that wrote it, in the order of their making.
    pub sequence: u32,
    /// Layer.
    pub layer: u32,
    /// KV head.
    pub kv_head: u32,
    /// Place among the pages of the (layer, KV head).
    pub page_idx: u32,
}

impl fmt::Display for PageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, layer, kv_head, page_idx } = self;
        write!(f, "page {page_idx} of layer {layer}, KV head {kv_head}, sequence {sequence}")
    }
}

/// How something on disk differs from what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// It does not begin as such things do.
    Magic,
    /// It is of another version of the format.
    Version,
    /// It is of a store of another model, format or shape.
    Fingerprint,
    /// It is something else of this store.
    Identity,
    /// It is shorter or longer than what was written.
    Length,
    /// Its bytes are not those that were written.
    Checksum,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "it does not begin with the mark of the format",
            Self::Version => "it is of another version of the format",
            Self::Fingerprint => "it is of a store of another model, format or shape",
            Self::Identity => "something else lies in its place",
            Self::Length => "it is not as long as what was written",
            Self::Checksum => "its checksum is not that of its bytes",
        })
    }
}
