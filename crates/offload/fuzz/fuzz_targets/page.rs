//! Pages of a saved sequence changed in any way, with or without the checksums that they should have, and their files cut:
//! each is an error, or has the rows that lie there under its checksum.

#![no_main]

mod common;

use common::{Folder, Outcome, check, folder, overwrite};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let mut folder = folder();
    let _ = change(&mut folder, &mut input);
    let num_pages = folder.num_pages();
    let Outcome::Loaded { num_good, num_damaged } = check(&folder, data.len()) else {
        panic!("the table is as it was")
    };
    assert_eq!(num_good + num_damaged, num_pages);
});

fn change(folder: &mut Folder, input: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..input.int_in_range(1..=3)? {
        let idx = input.choose_index(folder.num_pages())?;
        for _ in 0..input.int_in_range(1..=4)? {
            overwrite(folder.page(idx), input)?;
        }
        if input.arbitrary()? {
            folder.sign_page(idx);
        }
    }
    if input.ratio(1, 8)? {
        let idx = input.choose_index(folder.num_pages())?;
        let at = input.int_in_range(0..=folder.page(idx).len())?;
        folder.cut_page(idx, at);
    }
    Ok(())
}
