//! What the targets share: the folder of saved sequences that the tests change too, changes drawn from the fuzzer's
//! bytes, and a bound of what may be allocated.

#![allow(dead_code, reason = "the tests make use of the rest")]

#[path = "../../tests/offload/reading.rs"]
mod reading;
#[path = "../../tests/offload/sim.rs"]
mod sim;
#[path = "../../tests/offload/tampered.rs"]
mod tampered;

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use peak_alloc::PeakAlloc;

pub(crate) use tampered::{Folder, Outcome};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What a case may allocate beside the bytes that it has: folders, stores and their budgets, and threads.
const BESIDE: usize = 1 << 20;

/// The folder, unchanged.
pub(crate) fn folder() -> Folder {
    static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);
    FOLDER.clone()
}

/// Checks a folder, and that this takes no more than a few times the `len` bytes that the fuzzer made of it.
pub(crate) fn check(folder: &Folder, len: usize) -> Outcome {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let outcome = folder.check();
    let taken = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(taken <= BESIDE + 64 * len, "{taken} bytes allocated for {len}");
    outcome
}

/// Bytes changed in place: a number of any width overwritten, a part copied over another, or two swapped.
pub(crate) fn overwrite(bytes: &mut [u8], input: &mut Unstructured<'_>) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let at = input.choose_index(bytes.len())?;
    let rest = &mut bytes[at..];
    match input.int_in_range(0..=4)? {
        0 => rest[0] = input.arbitrary()?,
        1 => put(rest, &number(input)?.to_le_bytes()[..4]),
        2 => put(rest, &number(input)?.to_le_bytes()),
        3 => {
            // A small step, as from a number to the next.
            rest[0] = rest[0].wrapping_add(input.int_in_range(0..=4)?).wrapping_sub(2);
        }
        _ => {
            let len = input.int_in_range(1..=64)?.min(bytes.len());
            let [from, to] = [(); 2].map(|()| input.choose_index(bytes.len() - len + 1));
            let part = bytes[from?..][..len].to_vec();
            bytes[to?..][..len].copy_from_slice(&part);
        }
    }
    Ok(())
}

/// One of those at which something overflows, or any.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    let special = [0, 1, 2, 1 << 31, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX];
    if input.arbitrary()? { input.choose(&special).copied() } else { input.arbitrary() }
}

fn put(bytes: &mut [u8], with: &[u8]) {
    bytes.iter_mut().zip(with).for_each(|(byte, with)| *byte = *with);
}
