//! Kernels that are wrong on purpose are seen to be, by the same cases and comparers that hold the right ones: in WGSL
//! here, and as twins in CUDA C++.
//!
//! A barrier is skipped one at a time, where its absence shows on Mesa's software device: its subgroups run one after the
//! other from barrier to barrier, and the threads of one all at once. Not shown there is the one barrier of `gemv`, which is
//! among the eight threads of a row; that behind the weights of `prefill`, which the first subgroups have made before the
//! others run; for the same reason, those before the first step of a sum; and that behind a tile of `prefill`, as the
//! chunks of the next one have barriers of their own.

mod attention;
mod layers;
mod scores;

use std::panic::{AssertUnwindSafe, catch_unwind};

use heterokv_gpu::DeviceKind;
use heterokv_shaders::{KeyForm, SHADERS, Shader, Variant, WeightForm};

use crate::devices::{Place, places_or_skip};
use crate::layers::swiglu_on;
use crate::sites::Site;

/// Something else in the text of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edit {
    pub(crate) kernel: &'static str,
    pub(crate) what: &'static str,
    from: &'static str,
    to: &'static str,
}

pub(crate) const fn damage(
    kernel: &'static str,
    what: &'static str,
    from: &'static str,
    to: &'static str,
) -> Edit {
    Edit { kernel, what, from, to }
}

impl Edit {
    /// The text of a kernel with it, once. What one form of keys or weights does not have, another may.
    pub(crate) fn apply(self, kernel: &str, text: String) -> String {
        if kernel == self.kernel { text.replacen(self.from, self.to, 1) } else { text }
    }

    fn skips_barrier(self) -> bool {
        self.from.contains("Barrier()") && !self.to.contains("Barrier()")
    }
}

/// A site that runs kernels as they are written, right or wrong.
pub(crate) trait Spoilable: Site {
    /// The text of a kernel that it runs, where there is one.
    fn text(shader: &Shader, variant: Variant) -> Option<String>;

    /// One whose kernels are wrong.
    fn with(&self, edit: Edit) -> Self;

    /// Whether a skipped barrier shows in every run, and not by chance.
    fn shows_barriers(&self) -> bool {
        true
    }
}

impl Spoilable for Place {
    fn text(shader: &Shader, variant: Variant) -> Option<String> {
        Some(shader.wgsl(variant))
    }

    fn with(&self, edit: Edit) -> Self {
        Self { edit: Some(edit), ..self.clone() }
    }

    fn shows_barriers(&self) -> bool {
        self.device.gpu().summary().kind == DeviceKind::Software
    }
}

/// The cases panic, of each damage, on one of the sites: what is wrong there is so on all.
pub(crate) fn all_seen<S: Spoilable>(sites: &[S], cases: impl Fn(&[S]), damages: &[Edit]) {
    let best = sites.iter().find(|site| site.shows_barriers());
    let Some(site) = best.or(sites.first()) else { return };
    for &edit in damages {
        let Edit { kernel, what, from, .. } = edit;
        let is_there = texts::<S>(kernel).any(|text| text.contains(from));
        assert!(is_there, "{kernel}: {what}: there is no `{from}`");
        if edit.skips_barrier() && !site.shows_barriers() {
            println!("SKIPPED: {kernel}: {what}: by chance alone on {}", site.name());
            continue;
        }
        let wrong = [site.with(edit)];
        let Some(message) = panic_of(|| cases(&wrong)) else {
            panic!("{kernel}: {what} is not seen");
        };
        // Not that of a text that does not compile.
        let is_of_case = message.contains(&format!("on {}", site.name()));
        assert!(is_of_case, "{kernel}: {what}: {message}");
        println!("{kernel}: {what}: {}", message.lines().next().unwrap_or_default());
    }
}

/// What it says where it panics.
fn panic_of(run: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    Some(panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

/// The texts of a kernel, in every form that it comes in.
fn texts<S: Spoilable>(kernel: &str) -> impl Iterator<Item = String> {
    let shaders = SHADERS.into_iter().filter(move |shader| shader.name == kernel);
    let forms = WeightForm::ALL.into_iter().zip(KeyForm::ALL);
    shaders.flat_map(move |shader| {
        let variant = |(weights, keys)| Variant { weights, keys, ..Variant::default() };
        forms.clone().filter_map(move |form| S::text(shader, variant(form)))
    })
}

/// A damage that is none, that is not in the text, or that does not compile, is not taken for one that is seen.
#[test]
fn what_is_no_damage_is_an_error() {
    let places = places_or_skip();
    for (from, to, expected) in [
        ("* up[at]", "* (up[at])", "is not seen"),
        ("* down[at]", "* up[at]", "there is no `* down[at]`"),
        ("* up[at]", "* down[at]", "no definition in scope"),
    ] {
        let none = [damage("swiglu", "nothing", from, to)];
        let message = panic_of(|| all_seen(places, swiglu_on, &none));
        let is_error = message.as_ref().is_some_and(|message| message.contains(expected));
        assert!(is_error || places.is_empty(), "{from} as {to}: {message:?}");
    }
}
