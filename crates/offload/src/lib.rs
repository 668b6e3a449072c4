//! The host side of a KV cache: pages of rows by (layer, KV head), and the arenas that count bytes.
//!
//! A [`HostStore`] keeps values, and exact keys where they are wanted, in host memory. Attention reads
//! it through [`RowSource`](heterokv_quant::RowSource). An [`Arena`] counts what is allocated from it, so
//! that reported bytes are measured and not computed.
//!
//! This crate knows no attention maths, no model and no selection policy.

mod arena;
mod error;
mod store;

pub use arena::{Arena, Block, Charge};
pub use error::{Error, Result};
pub use store::{HeadRows, HostStore, StoreShape};
