//! The public face of the crate against its f64 reference.

mod decode;
mod pattern;
mod prefill;
mod reference;
mod state;
mod weights;
