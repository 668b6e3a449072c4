//! Kernels on devices, held to scalar f64 references over one table of cases for each.
//!
//! `HETEROKV_GPU` says what there has to be: `required` fails where there is no adapter, `auto` (as without it) takes
//! those that there are, `none` takes none. Every adapter is taken twice, with its own limits and with the smallest
//! that WebGPU allows, and its sums in every way that it knows: in workgroup memory, by its own subgroups, and by
//! subgroups of 4 to 128 threads that are emulated. The emulation says nothing of real subgroups of those sizes; it
//! shows that the kernels do not depend on the size.
//!
//! The kernels that have a twin in CUDA C++ run over the same cases (`cuda`).

#![expect(clippy::print_stdout, reason = "devices and skips are printed")]
#![expect(clippy::unwrap_used, reason = "what tests share may unwrap as tests do")]

mod attention;
mod cache;
mod codecs;
mod cuda;
mod devices;
mod encode;
mod faults;
mod forgetting;
mod groups;
mod key_scores;
mod layers;
mod matrices;
mod pages;
mod sample;
mod scores;
mod select;
mod sites;
mod tables;
mod wrong;
