//! The program `heterokv-bench`: the suites without peers of other packages.

use std::process::ExitCode;

use heterokv_bench::{Options, Peers, run};

fn main() -> ExitCode {
    run(&Options::from_command_line(), Peers::default())
}
