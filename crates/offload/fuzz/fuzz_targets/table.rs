//! Any bytes as the table of a saved sequence, and a table changed in any way, under the checksum that it should have:
//! an error, or a sequence of which every row that can be read is the one that was written.

#![no_main]

mod common;

use common::{Folder, check, folder, overwrite};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let mut folder = folder();
    // What is left of the bytes decides how far this comes.
    let _ = change(&mut folder, &mut input);
    let len = folder.table().len();
    std::hint::black_box(check(&folder, len));
});

fn change(folder: &mut Folder, input: &mut Unstructured<'_>) -> Result<()> {
    let is_signed = input.ratio(15, 16)?;
    if input.ratio(1, 8)? {
        // The mark and version, and then whatever comes.
        let kept = input.int_in_range(0..=12)?.min(folder.table().len());
        folder.table().truncate(kept);
        folder.table().extend(input.bytes(input.len())?);
    } else {
        for _ in 0..input.int_in_range(1..=6)? {
            change_once(folder.table(), input)?;
        }
    }
    if is_signed {
        folder.sign_table();
    }
    Ok(())
}

fn change_once(table: &mut Vec<u8>, input: &mut Unstructured<'_>) -> Result<()> {
    let at = input.int_in_range(0..=table.len())?;
    match input.int_in_range(0..=7)? {
        0 => table.truncate(at),
        1 => {
            let len = input.int_in_range(0..=64)?.min(table.len() - at);
            table.drain(at..at + len);
        }
        2 => {
            // What was there once more, often.
            let len = input.int_in_range(0..=64)?.min(table.len() - at);
            let part = table[at..at + len].repeat(input.int_in_range(1..=200)?);
            table.splice(at..at, part);
        }
        _ => overwrite(table, input)?,
    }
    Ok(())
}
