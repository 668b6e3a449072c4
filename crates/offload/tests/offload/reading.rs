//! Rows read in both ways that a reader has, which must agree: in runs, as attention reads, and page by page. The fuzz
//! targets read so too.

use heterokv_offload::{HeadRows, Result};
use heterokv_quant::RowSource;

/// The rows at `positions`, in their order.
///
/// # Errors
/// What the first of the two ways fails with that does.
pub(crate) fn read(rows: &HeadRows, positions: &[u32]) -> Result<Vec<Vec<u8>>> {
    let in_runs = read_in_runs(rows, positions)?;
    assert_eq!(in_runs, read_by_page(rows, positions)?, "rows do not depend on how they are read");
    Ok(in_runs)
}

fn read_in_runs(rows: &HeadRows, positions: &[u32]) -> Result<Vec<Vec<u8>>> {
    let mut found = vec![Vec::new(); positions.len()];
    rows.visit_runs(positions, &mut |run| {
        assert!(!run.rows.is_empty(), "a run has rows");
        for (found, row) in found[run.offset..][..run.rows.len()].iter_mut().zip(run.rows) {
            put(found, row);
        }
    })?;
    Ok(found)
}

fn read_by_page(rows: &HeadRows, positions: &[u32]) -> Result<Vec<Vec<u8>>> {
    let mut found = vec![Vec::new(); positions.len()];
    let row_bytes = rows.layout().row_bytes();
    rows.visit_rows(positions, &mut |page| {
        assert_eq!(page.bytes.as_ptr().addr() % 64, 0, "pages are usable in place");
        page.iter(row_bytes).for_each(|(index, row)| put(&mut found[index], row));
    })?;
    Ok(found)
}

fn put(found: &mut Vec<u8>, row: &[u8]) {
    assert!(found.is_empty(), "a row is visited once");
    found.extend(row);
}
