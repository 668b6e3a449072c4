//! Host memory and disk for the rows of a cache, held against what they will take.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, DiskOptions, HostOptions, OsFiles};
use tempfile::TempDir;

use crate::args::HostArgs;
use crate::load::Opened;
use crate::output::bytes;

/// What a host store is opened with. Its folder, if it has one, is removed with it.
pub(crate) struct HostPlace {
    pub(crate) options: HostOptions,
    _folder: Option<TempDir>,
}

impl HostPlace {
    /// Makes a folder for the rows of a cache, where they are to go to a disk; `plan` is of the longest context, and
    /// takes what the host will hold in RAM from here.
    ///
    /// # Errors
    /// Options for a cache that has no rows on the host, a budget that is too small, and a folder that cannot be written.
    pub(crate) fn new(
        args: &HostArgs,
        opened: &Opened,
        config: &CacheConfig,
        plan: &mut CachePlan,
    ) -> Result<Self> {
        let Some(budget) = args.host_memory else {
            return Ok(Self { options: HostOptions::default(), _folder: None });
        };
        ensure!(
            *config != CacheConfig::Full,
            "full keeps nothing on the host; leave out --host-memory, or give another cache"
        );
        let ram_budget_bytes = usize::try_from(budget).unwrap_or(usize::MAX);
        let run = plan.host_dry_run(ram_budget_bytes);
        let least = plan.host_bytes / plan.host_pages.max(1) * (plan.host_open_pages + 1);
        ensure!(
            run.is_enough,
            "--host-memory {} is too little: the pages that take rows are in RAM, {} in all",
            bytes(budget),
            bytes(least as u64)
        );
        let Some(folder) = &args.disk else {
            ensure!(
                run.disk_pages == 0,
                "the host will hold {}, and --host-memory allows {}; allow more, name a folder for the rest by \
                 --disk, or use a shorter context",
                bytes(plan.host_bytes as u64),
                bytes(budget)
            );
            let options = HostOptions { ram_budget_bytes, disk: None };
            return Ok(Self { options, _folder: None });
        };
        plan.host_bytes = run.ram_bytes;
        // Of its own, so that several programs can use one disk.
        let own = tempfile::Builder::new().prefix("heterokv-").tempdir_in(folder);
        let own = own.with_context(|| {
            format!("cannot make a folder in {}; name one that can be written", folder.display())
        })?;
        let mut disk = DiskOptions::new(own.path(), opened.fingerprint());
        disk.files = Arc::new(OsFiles { reads: args.disk_reads.into() });
        disk.queue_len = QUEUE_LEN;
        let options = HostOptions { ram_budget_bytes, disk: Some(disk) };
        Ok(Self { options, _folder: Some(own) })
    }
}

/// Pages that are asked for ahead of a layer, at most: some hundred megabytes.
const QUEUE_LEN: usize = 1 << 14;
