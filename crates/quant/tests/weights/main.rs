//! Block weights: decoding, loading and multiplying.

mod dequant;
mod inputs;
mod loading;
mod products;
