//! Kernels in CUDA C++, over the case tables of their twins: on CUDA devices, and emulated on the CPU.
//!
//! `HETEROKV_CUDA` says what there has to be: `required` fails where there is no CUDA device, no C++ compiler or no NVRTC,
//! `auto` (as without it) takes what there is, `none` looks for no device. A device is looked for in a build with the
//! feature `cuda` alone.

#[cfg(feature = "cuda")]
mod device;
mod emulation;
mod nvrtc;
mod wrong;

use std::env;

use crate::{attention, encode, groups, key_scores, sample, scores, select, tables};

/// What there has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Required,
    Auto,
    None,
}

impl Wanted {
    fn here() -> Self {
        match env::var("HETEROKV_CUDA").as_deref() {
            Ok("required") => Self::Required,
            Ok("auto") | Err(_) => Self::Auto,
            Ok("none") => Self::None,
            Ok(other) => panic!("HETEROKV_CUDA is `{other}`: required, auto or none"),
        }
    }

    /// Something is not there.
    fn miss(self, what: &str) {
        assert!(self != Self::Required, "CUDA is required, and {what}");
        println!("SKIPPED: {what}");
    }
}

/// A test over the cases of a kernel's twin, wherever text in CUDA runs.
macro_rules! on_all {
    ($($name:ident: $cases:path,)*) => {
        $(#[test]
        fn $name() {
            $cases(emulation::sites());
            #[cfg(feature = "cuda")]
            $cases(device::sites());
        })*
    };
}

on_all! {
    argmax: sample::argmax_on,
    attend_rows: attention::attend_rows_on,
    encode_allocated: encode::encode_allocated_on,
    encode_channels: encode::encode_channels_on,
    encode_integers: encode::encode_integers_on,
    encode_levels: encode::encode_levels_on,
    logits_that_give_no_token_say_so: sample::no_token_on,
    merge_states: attention::merge_states_on,
    prefill: attention::prefill_on,
    group_tables: groups::group_tables_on,
    frame_queries: tables::frame_queries_on,
    query_energy: tables::query_energy_on,
    sample: sample::sample_on,
    score_groups: key_scores::score_groups_on,
    score_keys: key_scores::score_keys_on,
    score_planes: scores::score_planes_on,
    select: select::select_on,
    store_rows: tables::store_rows_on,
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_required_is_looked_for() {
    let wanted = Wanted::here();
    if wanted != Wanted::None {
        wanted.miss("CUDA devices are looked for in builds with the feature `cuda` alone");
    }
}
