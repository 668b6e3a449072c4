//! Where the rows of a cache are on the host: in RAM, under a budget, on a disk, or in a session.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, DiskOptions, KvCache, OsFiles, Store, StoreOptions};
use heterokv_model::{HostDecoder, Resumed, Session};
use tempfile::TempDir;

use crate::args::{CacheArgs, HostArgs};
use crate::interrupt;
use crate::load::Opened;
use crate::output::{bytes, count, say, tokens};
use crate::requirement::kv_shape;

/// Where the rows are.
pub(crate) enum HostPlace {
    /// In RAM, as much as there is.
    Ram,
    /// In a store for this run.
    Run(RunStore),
    /// In a folder that stays.
    Session(Box<Session>),
}

/// RAM for the rows.
pub(crate) struct Budget {
    /// What they may take.
    ram_budget_bytes: usize,
    /// What they will.
    pub(crate) ram_bytes: usize,
}

/// A store for one run. Its folder, if it has one, is removed with it.
pub(crate) struct RunStore {
    store: Store,
    // After the store, whose files are in it.
    _folder: Option<TempDir>,
}

impl HostPlace {
    /// Opens what the arguments ask for.
    ///
    /// # Errors
    /// A folder that cannot be written, and a session of something else.
    pub(crate) fn open(
        opened: &Opened,
        args: &HostArgs,
        session: Option<&Path>,
        config: &CacheConfig,
        budget: &Budget,
    ) -> Result<Self> {
        let ram_budget_bytes = budget.ram_budget_bytes;
        let shape = kv_shape(opened.checkpoint.config())?;
        let files = OsFiles { reads: args.disk_reads.into() };
        if let Some(folder) = session {
            let session =
                Session::open(folder, &opened.checkpoint, &shape, config, ram_budget_bytes, files)?;
            return Ok(Self::Session(Box::new(session)));
        }
        if args.host_memory.is_none() {
            return Ok(Self::Ram);
        }
        let folder = args.disk.as_deref().map(own_folder).transpose()?;
        let disk = folder.as_ref().map(|folder| DiskOptions {
            files: Arc::new(files),
            ..DiskOptions::new(folder.path(), opened.fingerprint())
        });
        let options = StoreOptions { shape: config.store_shape(&shape), ram_budget_bytes, disk };
        let store = Store::open(options).map_err(heterokv_cache::Error::from)?;
        Ok(Self::Run(RunStore { store, _folder: folder }))
    }

    /// The session, where it is one.
    pub(crate) fn session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Self::Session(session) => Some(session),
            Self::Ram | Self::Run(_) => None,
        }
    }

    /// Tokens of a prompt that are processed at once on the CPU.
    ///
    /// # Errors
    /// A session of another text.
    pub(crate) fn tokens_at_once(&self, prompt: &[u32]) -> Result<usize> {
        let found = match self {
            Self::Session(session) => session.found(prompt)?,
            Self::Ram | Self::Run(_) => 0,
        };
        Ok(HostDecoder::tokens_at_once(prompt.len(), found))
    }

    /// The cache that a session has for a prompt, or an empty one.
    ///
    /// # Errors
    /// A profile that does not fit, and what is wrong with a session.
    pub(crate) fn cache(
        &self,
        opened: &Opened,
        args: &CacheArgs,
        config: CacheConfig,
        prompt: &[u32],
    ) -> Result<Resumed<KvCache>> {
        let profile = opened.profile(args.terms.profile.as_ref())?;
        let (shape, level) = (kv_shape(opened.checkpoint.config())?, opened.level());
        let profile = profile.as_ref();
        let session = match self {
            Self::Ram => return Ok(Resumed::empty(opened.cache(config, profile)?)),
            Self::Run(RunStore { store, .. }) => {
                let cache = KvCache::in_store(shape, config, level, profile, store)?;
                return Ok(Resumed::empty(cache));
            }
            Self::Session(session) => session,
        };
        let resumed = session.resume(prompt, (shape, config), level, profile)?;
        let (found, all) = (resumed.num_tokens, prompt.len());
        say(&format!(
            "session {}: {} of {} found, {} to read",
            session.folder().display(),
            count(found),
            tokens(all),
            count(all - found)
        ));
        Ok(resumed)
    }
}

impl Budget {
    /// Of the arguments, held against `plan`, which is of the longest context.
    ///
    /// # Errors
    /// A budget that is too small or of no use.
    pub(crate) fn new(
        args: &HostArgs,
        is_session: bool,
        config: &CacheConfig,
        plan: &CachePlan,
    ) -> Result<Self> {
        let Some(budget) = args.host_memory else {
            return Ok(Self { ram_budget_bytes: usize::MAX, ram_bytes: plan.host_bytes });
        };
        ensure!(
            *config != CacheConfig::Full,
            "full keeps nothing on the host; leave out --host-memory, or give another cache"
        );
        let ram_budget_bytes = usize::try_from(budget).unwrap_or(usize::MAX);
        let run = plan.host_dry_run(ram_budget_bytes);
        ensure!(
            run.is_enough,
            "--host-memory {} is too little: the pages that take rows are in RAM, {} in all",
            bytes(budget),
            bytes(run.least_bytes as u64)
        );
        ensure!(
            run.disk_pages == 0 || is_session || args.disk.is_some(),
            "the host will hold {}, and --host-memory allows {}; allow more, name a folder for the rest by --disk, or \
             use a shorter context",
            bytes(plan.host_bytes as u64),
            bytes(budget)
        );
        Ok(Self { ram_budget_bytes, ram_bytes: run.ram_bytes })
    }
}

/// What the names of such folders begin with.
const PREFIX: &str = "heterokv-run-";

/// How long a folder whose store nobody holds has to be there before it is taken for one of a process that was killed.
const ABANDONED: Duration = Duration::from_secs(60);

/// A folder of its own on a disk, so that several programs can use one; those that a killed one left are removed.
fn own_folder(disk: &Path) -> Result<TempDir> {
    sweep(disk);
    let new = tempfile::Builder::new().prefix(PREFIX).tempdir_in(disk).with_context(|| {
        format!("cannot make a folder in {}; name one that can be written", disk.display())
    })?;
    interrupt::remove_at_end(new.path().to_owned());
    Ok(new)
}

/// Removes folders whose lock nobody holds any more, and in which nothing is saved. What cannot be looked at or removed
/// stays.
fn sweep(disk: &Path) {
    let is_abandoned = |folder: &Path| -> std::io::Result<bool> {
        let lock = File::options().write(true).open(folder.join(Store::LOCK))?;
        let age = lock.metadata()?.modified()?.elapsed().unwrap_or_default();
        let mut has_saved = false;
        for entry in fs::read_dir(folder)? {
            has_saved |= Store::saved_name(&entry?.file_name().to_string_lossy()).is_some();
        }
        Ok(age >= ABANDONED && !has_saved && lock.try_lock().is_ok())
    };
    let entries = fs::read_dir(disk).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        if is_abandoned(&entry.path()).unwrap_or(false) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// A folder as a store leaves it, whose lock was made so long ago.
    fn left(disk: &Path, name: &str, age: Duration) -> File {
        fs::create_dir(disk.join(name)).unwrap();
        fs::write(disk.join(name).join("pages-00000001"), "rows").unwrap();
        let lock = File::create(disk.join(name).join(Store::LOCK)).unwrap();
        lock.set_modified(SystemTime::now() - age).unwrap();
        lock
    }

    #[test]
    fn only_folders_that_a_killed_run_left_are_removed() {
        let disk = tempfile::tempdir().unwrap();
        let name = |end: &str| format!("{PREFIX}{end}");
        left(disk.path(), &name("killed"), 2 * ABANDONED);
        left(disk.path(), &name("new"), Duration::ZERO);
        left(disk.path(), "book.session", 2 * ABANDONED);
        left(disk.path(), &name("session"), 2 * ABANDONED);
        fs::write(disk.path().join(name("session")).join("session.saved"), "").unwrap();
        fs::create_dir(disk.path().join(name("empty"))).unwrap();
        let held = left(disk.path(), &name("held"), 2 * ABANDONED);
        held.try_lock().unwrap();
        sweep(disk.path());
        let is_there = |end: &str| disk.path().join(name(end)).exists();
        assert!(!is_there("killed"));
        assert!(["new", "session", "empty", "held"].into_iter().all(is_there));
        assert!(disk.path().join("book.session").exists());
    }
}
