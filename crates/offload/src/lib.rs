//! The host side of a KV cache: pages of rows by (sequence, layer, KV head, page index), in RAM under a budget and on
//! disk below it.
//!
//! A [`Store`] has the tiers, and [`Sequence`]s of rows in them, each with one writer. Attention reads a [`HeadRows`]
//! through [`RowSource`](heterokv_quant::RowSource), page by page: what is in RAM at once and where it lies, the rest
//! as it arrives. Every page on disk has a checksum over what it is and holds; one that differs is an error and never
//! data. An [`Arena`] counts what is allocated from it, so that reported bytes are measured and not computed.
//!
//! ```
//! use heterokv_offload::{DiskOptions, Store, StoreOptions, StoreShape};
//! use heterokv_quant::{RowFormat, RowLayout, RowSource};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layout = RowLayout { key: None, value: RowFormat::Int8, head_dim: 64 };
//! let shape = StoreShape { num_layers: 2, num_kv_heads: 1, page_size: 16, layout };
//! let folder = tempfile::tempdir()?;
//! let disk = Some(DiskOptions::new(folder.path(), "a model"));
//! let store = Store::open(StoreOptions { shape, ram_budget_bytes: 8 << 10, disk })?;
//!
//! let mut sequence = store.sequence();
//! let values = [0.5; 200 * 64];
//! sequence.append(1, 0, &values, &values)?;
//! let mut num_rows = 0;
//! sequence.rows(1, 0).visit_rows(&[0, 3, 150], &mut |page| num_rows += page.rows.len())?;
//! assert_eq!(num_rows, 3);
//!
//! sequence.save("talk")?;
//! assert_eq!(store.load("talk")?.rows(1, 0).num_rows(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! This crate knows no attention maths, no model and no selection policy.

mod arena;
mod attached;
mod block;
mod dirty;
mod disk;
mod error;
mod fetch;
mod gather;
mod inbox;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod page;
mod pending;
mod policy;
mod queue;
mod saved;
mod sequence;
mod shape;
mod stats;
mod store;
mod sync;
mod table;
mod ticket;
mod transfer;
mod turns;

pub use arena::{Arena, Block, Charge};
pub use attached::Attachment;
pub use disk::{File, Files, OsFiles, Reads};
pub use error::{Damage, Error, PageName, Result};
pub use fetch::Fetch;
pub use gather::{HeadRows, Pin};
pub use sequence::Sequence;
pub use shape::{DryRun, StoreShape};
pub use stats::{Queued, Stats, Tier, Waits};
pub use store::{DiskOptions, Store, StoreOptions};
pub use ticket::{Prefetched, Ticket};
