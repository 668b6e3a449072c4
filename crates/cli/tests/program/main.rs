//! The program as a user meets it: what it prints, and how it fails.

mod bad_input;
mod fixture;
mod runs;
mod sizes;
