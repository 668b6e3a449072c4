//! Files that are made for one model: which kinds there are, which model one is for, and how one is opened and
//! written.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, KvShape, Result};

/// Most (layer, KV head)s of a model: far more than any has.
const MAX_HEADS: usize = 65_536;

/// What a file holds that is for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A [`KeyMix`](crate::KeyMix).
    Mix,
    /// A [`Profile`](crate::Profile).
    Profile,
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
    /// A word near the beginning of files of this kind and of no other.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Mix => "heterokv_mix",
            Self::Profile => "heterokv_profile",
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
    /// of the other kind, that is the reason.
    pub(crate) fn damaged(self, path: &Path, bytes: &[u8], reason: String) -> Error {
        let (other, said) = match self {
            Self::Mix => (Self::Profile, "it is a profile, which --profile takes"),
            Self::Profile => (Self::Mix, "it is a mix, which a cache names by keys=mix:FILE"),
        };
        let mark = other.mark().as_bytes();
        let is_other = bytes.windows(mark.len()).any(|window| window == mark);
        let reason = if is_other { said.to_owned() } else { reason };
        Error::FileFormat { kind: self, path: path.to_owned(), reason }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::FileIo`], also for what is no regular file and could be read without end.
    pub(crate) fn open(self, path: &Path) -> Result<File> {
        check_regular(path).and_then(|()| File::open(path)).map_err(|source| self.io(path, source))
    }

    /// Refuses a path that [`FileKind::replace`] could not write to: in a folder that is missing or not writable,
    /// or of something that is there and no regular file.
    ///
    /// # Errors
    /// [`Error::FileIo`].
    pub(crate) fn check_writable(self, path: &Path) -> Result<()> {
        let partial = partial_path(path);
        let written = check_regular(path).and_then(|()| File::create(&partial).map(drop));
        written.and_then(|()| fs::remove_file(&partial)).map_err(|source| self.io(path, source))
    }

    /// Writes `bytes` to `path`: a file that is there is replaced whole or not at all.
    ///
    /// # Errors
    /// [`Error::FileIo`].
    pub(crate) fn replace(self, path: &Path, bytes: &[u8]) -> Result<()> {
        let partial = partial_path(path);
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
        written.map_err(|source| self.io(path, source))
    }

    pub(crate) fn io(self, path: &Path, source: io::Error) -> Error {
        Error::FileIo { kind: self, path: path.to_owned(), source }
    }
}

impl fmt::Display for FileKind {
    /// As the command that makes one is called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mix => "mix",
            Self::Profile => "profile",
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

/// Where a file is written before it is whole.
fn partial_path(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}
