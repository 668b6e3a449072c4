//! Files that a store makes in its folder, and how they go.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{File, Files};

/// Keeps others out of the folder until the last file of this store is gone or left to stay.
pub(crate) type FolderLock = Arc<dyn Any + Send + Sync>;

/// What a numbered file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// Slots of pages.
    Pages,
    /// What is saved with a sequence beside its rows.
    Attached,
}

/// A file of this store. It is removed when nobody here uses it any more, unless it is to stay.
#[derive(Debug)]
pub(crate) struct OwnFile {
    path: PathBuf,
    files: Arc<dyn Files>,
    file: Box<dyn File>,
    /// Something saved lies in it.
    is_kept: AtomicBool,
    _folder_lock: FolderLock,
}

impl FileKind {
    pub(crate) const ALL: [Self; 2] = [Self::Pages, Self::Attached];

    fn prefix(self) -> &'static str {
        match self {
            Self::Pages => "pages-",
            Self::Attached => "attached-",
        }
    }

    /// The name of a file of this kind.
    pub(crate) fn name(self, number: u32) -> String {
        format!("{}{number:08}", self.prefix())
    }

    /// The number of a file of this kind, or none for other files.
    pub(crate) fn number(self, name: &str) -> Option<u32> {
        let number = name.strip_prefix(self.prefix())?.parse().ok()?;
        (name == self.name(number)).then_some(number)
    }
}

impl OwnFile {
    pub(super) fn new(
        path: PathBuf,
        files: &Arc<dyn Files>,
        folder_lock: &FolderLock,
        file: Box<dyn File>,
    ) -> Self {
        let (files, _folder_lock) = (Arc::clone(files), Arc::clone(folder_lock));
        Self { path, files, file, is_kept: AtomicBool::new(false), _folder_lock }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    /// Lets the file stay when nobody here uses it any more.
    pub(crate) fn keep(&self) {
        self.is_kept.store(true, Ordering::Release);
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Acquire) {
            // What cannot be removed is removed when the folder is next used.
            let _ = self.files.remove(&self.path);
        }
    }
}
