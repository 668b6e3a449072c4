//! The `heterokv` program: parses, calls, prints.

fn main() {}
