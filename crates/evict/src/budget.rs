//! How many tokens each head keeps under one budget.

mod apportion;

pub use apportion::apportion;

#[cfg(test)]
mod tests;
