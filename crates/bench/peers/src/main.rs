//! The program `heterokv-bench` with peers: `candle-core`'s quantized row product and the keys of `turboquant-rs`.

mod candle;
mod turboquant;

use std::env;
use std::process::{Command, ExitCode};

use heterokv_bench::{Options, Peers, run};

/// By this variable alone candle learns how many threads it may use, once, before its first product.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

fn main() -> ExitCode {
    let options = Options::from_command_line();
    let num_threads = options.num_threads().to_string();
    if env::var(CANDLE_THREADS).ok().as_ref() == Some(&num_threads) {
        let peers = Peers { scans: candle::formats(), codecs: turboquant::codecs() };
        return run(&options, peers);
    }
    match again(&num_threads) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: cannot start again with {CANDLE_THREADS}={num_threads}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// This program once more, with candle's threads set.
fn again(num_threads: &str) -> std::io::Result<ExitCode> {
    let mut command = Command::new(env::current_exe()?);
    let status = command.args(env::args_os().skip(1)).env(CANDLE_THREADS, num_threads).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
