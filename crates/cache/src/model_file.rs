//! Files that are made for one model: which kinds there are, which model one is for, and how one is opened and
//! written.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::{Error, KvShape, Result};

/// Most (layer, KV head)s of a model: far more than any has.
const MAX_HEADS: usize = 65_536;

/// Bytes in which a profile says how long its header is.
pub(crate) const LEN_BYTES: usize = 8;

/// Bytes from the beginning of a file in which it says its kind. Before that, a profile may name the format of every
/// head.
const START_BYTES: u64 = 2 << 20;

/// What a file holds that is for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A [`KeyMix`](crate::KeyMix).
    Mix,
    /// A [`Profile`](crate::Profile).
    Profile,
    /// A [`HeadProfile`](crate::HeadProfile).
    Heads,
}

/// The model that a file is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelIdentity {
    fingerprint: String,
    pub(crate) num_layers: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl ModelIdentity {
    /// The model of `fingerprint`, which is of `shape`.
    ///
    /// # Errors
    /// [`Error::HeadCount`].
    pub(crate) fn of(fingerprint: &str, shape: &KvShape) -> Result<Self> {
        let KvShape { num_layers, heads } = *shape;
        Self::new(fingerprint.to_owned(), [num_layers, heads.num_kv_heads, heads.head_dim])
    }

    /// The same, of a shape `[num_layers, num_kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::HeadCount`].
    pub(crate) fn new(fingerprint: String, shape: [usize; 3]) -> Result<Self> {
        let [num_layers, num_kv_heads, head_dim] = shape;
        let num_heads = num_layers.checked_mul(num_kv_heads);
        if !num_heads.is_some_and(|heads| (1..=MAX_HEADS).contains(&heads)) {
            return Err(Error::HeadCount { num_layers, num_kv_heads, max: MAX_HEADS });
        }
        Ok(Self { fingerprint, num_layers, num_kv_heads, head_dim })
    }

    /// What a file says of its model.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// All (layer, KV head)s, 1 at least.
    pub(crate) fn num_heads(&self) -> usize {
        self.num_layers * self.num_kv_heads
    }

    /// Refuses another model than the one that the file is for.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub(crate) fn check_fingerprint(&self, kind: FileKind, fingerprint: &str) -> Result<()> {
        kind.check("model", &self.fingerprint, fingerprint)
    }

    /// Refuses a model of another shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub(crate) fn check_shape(&self, kind: FileKind, shape: &KvShape) -> Result<()> {
        let in_words = |num_layers: usize, num_kv_heads: usize, head_dim: usize| {
            format!("{num_layers} layers of {num_kv_heads} KV heads of {head_dim}")
        };
        let found = in_words(self.num_layers, self.num_kv_heads, self.head_dim);
        let KvShape { num_layers, heads } = *shape;
        kind.check("shape", &found, &in_words(num_layers, heads.num_kv_heads, heads.head_dim))
    }
}

impl FileKind {
    const ALL: [Self; 3] = [Self::Mix, Self::Profile, Self::Heads];

    /// A word near the beginning of files of this kind and of no other.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Mix => "heterokv_mix",
            Self::Profile => "heterokv_profile",
            Self::Heads => "heterokv_heads",
        }
    }

    /// Where a file of this kind is asked for.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Mix => "keys=mix:FILE",
            Self::Profile => "--profile FILE",
            Self::Heads => "heads=FILE",
        }
    }

    /// What is called to make one.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Mix => "heterokv mix",
            Self::Profile => "heterokv profile",
            Self::Heads => "heterokv profile --heads",
        }
    }

    /// Whether a file that begins with `start` is of this kind, be it damaged behind that.
    fn begins_with(self, start: &[u8]) -> bool {
        let mark = format!("\"{}\"", self.mark());
        let mark = mark.as_bytes();
        match self {
            Self::Mix | Self::Heads => {
                let fields = start.trim_ascii_start().strip_prefix(b"{");
                fields.is_some_and(|fields| fields.trim_ascii_start().starts_with(mark))
            }
            Self::Profile => {
                let header = start.get(LEN_BYTES..).unwrap_or_default();
                header.starts_with(b"{\"__metadata__\":{")
                    && header.windows(mark.len()).any(|window| window == mark)
            }
        }
    }

    /// Refuses what differs in a `field` from what is needed.
    pub(crate) fn check(self, field: &'static str, found: &str, expected: &str) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found.to_owned(), expected.to_owned());
        Err(Error::Mismatch { kind: self, field, found, expected })
    }

    /// The error of a file that is none of this kind for a `reason`; where its beginning, `bytes`, says that it is
    /// of another kind, that is the reason.
    pub(crate) fn damaged(self, path: &Path, bytes: &[u8], reason: String) -> Error {
        let says = |kind: &Self| {
            let mark = kind.mark().as_bytes();
            *kind != self && bytes.windows(mark.len()).any(|window| window == mark)
        };
        let reason = match Self::ALL.into_iter().find(says) {
            None => reason,
            Some(Self::Mix) => "it is a mix, which a cache names by keys=mix:FILE".to_owned(),
            Some(Self::Profile) => "it is a profile, which --profile takes".to_owned(),
            Some(Self::Heads) => "it is a head profile, which heads=FILE takes".to_owned(),
        };
        Error::FileFormat { kind: self, path: path.to_owned(), reason }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Missing`], and [`Error::FileIo`], also for what is no regular file and could be read without end.
    pub(crate) fn open(self, path: &Path) -> Result<File> {
        check_regular(path).and_then(|()| File::open(path)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { kind: self, path: path.to_owned() },
            _ => self.io(path, source),
        })
    }

    /// Refuses a path that [`FileKind::replace`] could not or would not write to: in a folder that is missing or not
    /// writable, of something that is no regular file, or of a file that is read-only or of another kind.
    ///
    /// # Errors
    /// [`Error::FileIo`] and [`Error::Occupied`].
    pub(crate) fn check_writable(self, path: &Path) -> Result<()> {
        let target = self.target(path)?;
        let tried = create_beside(&target).and_then(|(_, partial)| fs::remove_file(partial));
        tried.map_err(|source| self.io(path, source))
    }

    /// Writes `bytes` to `path`: a file of this kind, or an empty one, that is there is replaced whole or not at
    /// all; where a symlink is there, the file that it leads to.
    ///
    /// # Errors
    /// [`Error::FileIo`] and [`Error::Occupied`].
    pub(crate) fn replace(self, path: &Path, bytes: &[u8]) -> Result<()> {
        let target = self.target(path)?;
        let write = || {
            let (mut file, partial) = create_beside(&target)?;
            let written = file.write_all(bytes).and_then(|()| file.sync_all());
            drop(file);
            let replaced = written.and_then(|()| fs::rename(&partial, &target));
            replaced.inspect_err(|_| drop(fs::remove_file(&partial)))
        };
        write().map_err(|source| self.io(path, source))
    }

    /// The path that a file goes to, symlinks followed, where nothing is lost by it.
    fn target(self, path: &Path) -> Result<PathBuf> {
        let occupied = |reason| Err(Error::Occupied { kind: self, path: path.to_owned(), reason });
        match self.find(path).map_err(|source| self.io(path, source))? {
            Found::Nothing => Ok(path.to_owned()),
            Found::Replaceable(target) => Ok(target),
            Found::ReadOnly => occupied("the file there is read-only"),
            Found::Foreign => occupied("the file there is something else"),
        }
    }

    /// What is at a path.
    fn find(self, path: &Path) -> io::Result<Found> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            found => found?,
        };
        let target = fs::canonicalize(path)?;
        check_regular(&target)?;
        if fs::metadata(&target)?.permissions().readonly() {
            return Ok(Found::ReadOnly);
        }
        let mut start = Vec::new();
        File::options()
            .read(true)
            .write(true)
            .open(&target)?
            .take(START_BYTES)
            .read_to_end(&mut start)?;
        let is_replaceable = start.is_empty() || self.begins_with(&start);
        Ok(if is_replaceable { Found::Replaceable(target) } else { Found::Foreign })
    }

    pub(crate) fn io(self, path: &Path, source: io::Error) -> Error {
        Error::FileIo { kind: self, path: path.to_owned(), source }
    }
}

impl fmt::Display for FileKind {
    /// In words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mix => "mix",
            Self::Profile => "profile",
            Self::Heads => "head profile",
        })
    }
}

fn check_regular(path: &Path) -> io::Result<()> {
    if path.exists() && !path.is_file() {
        let reason = "there is something else than a regular file at this path";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(())
}

/// What is at a path that a file is to be written to.
enum Found {
    Nothing,
    /// A file of the kind that is to be written, or an empty one: the path of the file itself.
    Replaceable(PathBuf),
    ReadOnly,
    /// A file of another kind.
    Foreign,
}

/// A new file in the folder of `target`, to become it once it is whole, and its path.
fn create_beside(target: &Path) -> io::Result<(File, PathBuf)> {
    let mut attempt = 0;
    loop {
        let mut partial = target.as_os_str().to_owned();
        partial.push(format!(".{}-{attempt}.partial", process::id()));
        match File::create_new(&partial) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            created => return Ok((created?, partial.into())),
        }
    }
}
