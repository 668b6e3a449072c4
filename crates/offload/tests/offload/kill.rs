//! A process that is killed while it writes, and whoever comes after it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use heterokv_offload::{Error, OsFiles};

use crate::*;

const HEAD: (usize, usize) = (0, 0);

/// Rows that each round appends before it saves.
const ROUND: usize = 37;

/// Names the folder to the process that is to be killed.
const FOLDER: &str = "HETEROKV_KILLED_IN";

fn open_in(folder: &Path) -> Store {
    let disk = Some(disk(Arc::new(OsFiles::default()), folder));
    Store::open(StoreOptions { shape: shape(4), ram_budget_bytes: 8 * 64, disk }).unwrap()
}

/// Rounds that are saved, after a check of every byte.
fn check_saved(folder: &Path) -> usize {
    let store = open_in(folder);
    match store.load("talk") {
        Ok(sequence) => {
            let num_rows = sequence.rows(0, 0).num_rows();
            assert_eq!(num_rows % ROUND, 0, "whole rounds");
            check(&sequence, HEAD, 4, num_rows);
            assert_eq!(read_attachment(&store, "talk").unwrap(), beside(num_rows));
            num_rows / ROUND
        }
        Err(Error::NoSuchSave { .. }) => 0,
        Err(error) => panic!("{error}"),
    }
}

/// Goes on from what is saved, round after round, and says each that is acknowledged: the process to be killed.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = open_in(Path::new(&folder));
    let mut sequence = store.load("talk").unwrap_or_else(|_| store.sequence());
    for _ in 0..1000 {
        append(&mut sequence, HEAD, 4, ROUND).unwrap();
        let num_rows = sequence.rows(0, 0).num_rows();
        save_with(&mut sequence, "talk", num_rows).unwrap();
        let num_rounds = num_rows / ROUND;
        writeln!(std::io::stdout(), "saved {num_rounds}").unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let is_long = std::env::var_os("HETEROKV_LONG").is_some();
    let num_kills = if is_long { 200 } else { 25 };
    let mut folder = tempfile::tempdir().unwrap();
    let mut num_rounds = 0;
    let mut state = 1_u64;
    for kill in 0..num_kills {
        if kill % 10 == 0 {
            folder = tempfile::tempdir().unwrap();
            num_rounds = 0;
        }
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["kill::writer", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let rounds = lines.map_while(std::result::Result::ok);
            rounds.filter_map(|line| line.strip_prefix("saved ")?.parse().ok()).last()
        });
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros(5_000 + (state >> 33) % 40_000));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let acknowledged = reader.join().unwrap().unwrap_or(num_rounds);
        let saved = check_saved(folder.path());
        // The last round may have been saved without a word of it.
        assert!(saved == acknowledged || saved == acknowledged + 1, "{saved}, {acknowledged}");
        num_rounds = saved;
    }
}
