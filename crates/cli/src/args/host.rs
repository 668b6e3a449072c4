//! Where the rows go that are not on the device.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use heterokv_cache::Reads;

use super::quantity::parse_bytes;

/// What the host may take.
#[derive(Args)]
pub(crate) struct HostArgs {
    /// The most RAM for values (and exact keys) on the host: 6GiB, 6GB, or plain bytes [default: what there is]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_negative_numbers = true)]
    pub(crate) host_memory: Option<u64>,
    /// A folder on a disk, which holds what --host-memory has no room for while the program runs
    #[arg(long, value_name = "FOLDER", requires = "host_memory")]
    pub(crate) disk: Option<PathBuf>,
    /// How that disk, or the folder of a session, is read
    #[arg(long, value_name = "WAY", default_value = "pread")]
    pub(crate) disk_reads: DiskReads,
}

/// How pages are read from disk.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DiskReads {
    /// Through the system's cache of files
    Pread,
    /// Out of the file mapped into memory
    Mapped,
    /// Past the system's cache, so that no page is in RAM twice; on Linux
    Direct,
}

impl From<DiskReads> for Reads {
    fn from(reads: DiskReads) -> Self {
        match reads {
            DiskReads::Pread => Self::Pread,
            DiskReads::Mapped => Self::Mapped,
            DiskReads::Direct => Self::Direct,
        }
    }
}
