//! Tests through the public interface: random interleavings, disks that fail, power that goes.

#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attached;
mod bad_input;
mod concurrent;
mod crash;
mod fair;
mod faults;
mod fetch;
mod hints;
mod hostile;
mod keep;
mod kill;
mod machine;
mod memory;
mod reading;
mod rows;
mod sim;
mod tampered;

use std::path::Path;
use std::sync::Arc;

use heterokv_offload::{
    DiskOptions, Files, HeadRows, OsFiles, Reads, Result, Sequence, Store, StoreOptions, StoreShape,
};
use heterokv_quant::{RowFormat, RowLayout, RowSource};

use crate::reading::read;

const HEAD_DIM: usize = 8;

/// Bytes of a row of [`shape`].
const ROW_BYTES: usize = 2 * HEAD_DIM;

/// Two layers of two KV heads, f16 values; a page of up to four rows takes 64 bytes.
fn shape(page_size: usize) -> StoreShape {
    let layout = RowLayout { key: None, value: RowFormat::F16, head_dim: HEAD_DIM };
    StoreShape { num_layers: 2, num_kv_heads: 2, page_size, layout }
}

/// A small disk: two workers, short queues, files of a few pages.
fn disk(files: Arc<dyn Files>, folder: &Path) -> DiskOptions {
    let options = DiskOptions::new(folder, "a model");
    DiskOptions { files, num_workers: 2, queue_len: 8, file_bytes: 5 << 12, ..options }
}

fn open(files: Arc<dyn Files>, num_frames: usize) -> Result<Store> {
    Store::open(StoreOptions {
        shape: shape(4),
        ram_budget_bytes: num_frames * 64,
        disk: Some(disk(files, Path::new("folder"))),
    })
}

/// A folder on the disk that the build is on; those for temporary files may be in RAM.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Every way to read real files, but for the one past the system's cache where the file system has none.
fn real_reads() -> Vec<Reads> {
    let mut all = vec![Reads::Pread, Reads::Mapped];
    match (OsFiles { reads: Reads::Direct }).create(&folder().path().join("file")) {
        Ok(_) => all.push(Reads::Direct),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::Unsupported, "{error}"),
    }
    all
}

/// Row number `i` of a stream, and its bytes in a store.
fn row(stream: usize, i: usize) -> [f32; HEAD_DIM] {
    std::array::from_fn(|channel| ((stream * 37 + i * 11 + channel) % 2048) as f32)
}

fn row_bytes(stream: usize, i: usize) -> Vec<u8> {
    let mut bytes = vec![0; ROW_BYTES];
    RowFormat::F16.encode(&row(stream, i), &mut bytes).unwrap();
    bytes
}

/// Bytes to save beside `num_rows` rows: others for every number, and more than a sector.
fn beside(num_rows: usize) -> Vec<u8> {
    (0..1000 + 7 * num_rows).map(|i| (i % 251 + num_rows) as u8).collect()
}

/// Saves a sequence with what belongs beside so many rows.
fn save_with(sequence: &mut Sequence, name: &str, num_rows: usize) -> Result<()> {
    sequence.save_with(name, |write| write.write_all(&beside(num_rows)))
}

/// All that is saved beside the rows.
fn read_attachment(store: &Store, name: &str) -> Result<Vec<u8>> {
    let mut attachment = store.attachment(name)?;
    let mut bytes = vec![0; attachment.rest_bytes() as usize];
    attachment.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Appends rows of a stream to one head, from where it ends.
fn append(sequence: &mut Sequence, head: (usize, usize), stream: usize, n: usize) -> Result<()> {
    let start = sequence.rows(head.0, head.1).num_rows();
    let rows: Vec<f32> = (start..start + n).flat_map(|i| row(stream, i)).collect();
    sequence.append(head.0, head.1, &rows, &rows)
}

fn read_all(rows: &HeadRows) -> Result<Vec<Vec<u8>>> {
    let positions: Vec<u32> = (0..rows.num_rows() as u32).collect();
    read(rows, &positions)
}

/// Holds a head to the first rows of a stream.
#[track_caller]
fn check(sequence: &Sequence, head: (usize, usize), stream: usize, num_rows: usize) {
    let rows = sequence.rows(head.0, head.1);
    assert_eq!(rows.num_rows(), num_rows);
    let expected: Vec<_> = (0..num_rows).map(|i| row_bytes(stream, i)).collect();
    assert_eq!(read_all(&rows).unwrap(), expected);
}
