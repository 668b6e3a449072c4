//! The power goes at any moment, with whatever was not synced kept, lost or torn: what was acknowledged is there.

use heterokv_offload::Error;
use proptest::prelude::Rng;
use proptest::test_runner::{Config, TestRng, TestRunner};

use crate::sim::{Call, Fate, Sim};
use crate::*;

const HEAD: (usize, usize) = (0, 1);

/// Rows that each round appends before it saves.
const ROUND: usize = 23;

/// Appends and saves until the power is gone. Rounds that were acknowledged.
fn run(sim: &Sim) -> usize {
    let mut num_saved = 0;
    let Ok(store) = open(Arc::new(sim.clone()), 6) else { return 0 };
    let mut sequence = store.sequence();
    for round in 1..=12 {
        let appended = append(&mut sequence, HEAD, 9, ROUND);
        let saved = appended.and_then(|()| save_with(&mut sequence, "talk", round * ROUND));
        if saved.is_err() {
            break;
        }
        num_saved += 1;
    }
    num_saved
}

/// What is wrong with what is found after `num_saved` rounds were acknowledged, if anything is.
fn verify(found: &Sim, num_saved: usize) -> Result<(), String> {
    let store = open(Arc::new(found.clone()), 6).map_err(|error| error.to_string())?;
    let sequence = match store.load("talk") {
        Ok(sequence) => sequence,
        Err(Error::NoSuchSave { .. }) if num_saved == 0 => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let rows = sequence.rows(HEAD.0, HEAD.1);
    let num_rows = rows.num_rows();
    // The round that the power ended may have come through or not.
    if num_rows != num_saved * ROUND && num_rows != (num_saved + 1) * ROUND {
        return Err(format!("{num_rows} rows after {num_saved} rounds"));
    }
    let expected: Vec<_> = (0..num_rows).map(|i| row_bytes(9, i)).collect();
    let found = read_all(&rows).map_err(|error| error.to_string())?;
    if found != expected {
        return Err("other bytes".to_owned());
    }
    let found = read_attachment(&store, "talk").map_err(|error| error.to_string())?;
    if found == beside(num_rows) { Ok(()) } else { Err("what is beside them".to_owned()) }
}

fn rng() -> TestRng {
    TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(Default::default()))
        .rng()
        .clone()
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_power() {
    let mut rng = rng();
    let whole = Sim::default();
    assert_eq!(run(&whole), 12);
    let num_calls = whole.num_changing_calls();
    let mut seen = std::collections::BTreeSet::new();
    for point in 0..200 {
        let sim = Sim::default();
        sim.end_power_after(rng.next_u64() as usize % num_calls);
        let num_saved = run(&sim);
        seen.insert(num_saved);
        for _ in 0..3 {
            verify(&sim.after_power_loss(&mut rng), num_saved)
                .unwrap_or_else(|found| panic!("point {point}: {found}"));
        }
    }
    assert!(seen.len() > 8, "points all over the run: {seen:?}");
}

/// Whether the loss of power is seen to lose or change something acknowledged, where calls of a kind do nothing.
fn is_loss_seen(lies: Call, of: &'static str) -> bool {
    let mut rng = rng();
    (0..100).any(|_| {
        let sim = Sim::default();
        sim.set_hook(
            move |call, name| {
                if call == lies && name.contains(of) { Fate::Lies } else { Fate::Well }
            },
        );
        let num_saved = run(&sim);
        verify(&sim.after_power_loss(&mut rng), num_saved).is_err()
    })
}

#[test]
fn a_sync_that_is_left_out_is_seen() {
    assert!(is_loss_seen(Call::Sync, "pages-"), "of the pages");
    assert!(is_loss_seen(Call::Sync, "attached-"), "of what is beside them");
    assert!(is_loss_seen(Call::Sync, ".saved"), "of the table");
    assert!(is_loss_seen(Call::SyncFolder, ""), "of the names");
    assert!(!is_loss_seen(Call::Sync, "no such file"), "none");
}
