//! The public face of the crate against its f64 reference.

mod prefill;
mod reference;
mod state;
