//! The only automation of the workspace.

fn main() {}
