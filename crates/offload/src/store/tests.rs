//! The store against a plain list of rows.

use heterokv_quant::RowFormat;
use proptest::prelude::*;

use super::*;

const HEAD_DIM: usize = 8;

fn shape(page_size: usize, key: Option<RowFormat>) -> StoreShape {
    let layout = RowLayout { key, value: RowFormat::F16, head_dim: HEAD_DIM };
    StoreShape { num_layers: 2, num_kv_heads: 3, page_size, layout }
}

fn row(seed: usize) -> Vec<f32> {
    (0..HEAD_DIM).map(|i| (seed * 31 + i) as f32 / 8.0).collect()
}

fn read(rows: HeadRows<'_>, positions: &[u32]) -> Vec<(usize, Vec<u8>)> {
    let mut read = Vec::new();
    let row_bytes = rows.layout().row_bytes();
    rows.visit_rows(positions, &mut |page| {
        read.extend(page.iter(row_bytes).map(|(index, row)| (index, row.to_vec())));
    })
    .unwrap();
    read
}

proptest! {
    #[test]
    fn reads_what_was_appended(
        appends in prop::collection::vec((0usize..2, 0usize..3), 0..200),
        page_size in 1usize..9,
        with_keys: bool,
        picks in prop::collection::btree_set(0u32..100, 0..40),
    ) {
        let key = with_keys.then_some(RowFormat::Int8);
        let shape = shape(page_size, key);
        let mut store = HostStore::new(shape, Arena::new("host"));
        let mut model = vec![Vec::new(); 6];
        for (i, &(layer, head)) in appends.iter().enumerate() {
            store.append(layer, head, &row(i), &row(i + 1)).unwrap();
            let mut bytes = vec![0; shape.layout.row_bytes()];
            shape.layout.encode(&row(i), &row(i + 1), &mut bytes).unwrap();
            model[layer * 3 + head].push(bytes);
        }
        let fork = store.fork().unwrap();
        let mut pages = 0;
        for (i, expected) in model.iter().enumerate() {
            let rows = store.rows(i / 3, i % 3);
            prop_assert_eq!(rows.num_rows(), expected.len());
            let positions: Vec<u32> =
                picks.iter().copied().filter(|&p| (p as usize) < expected.len()).collect();
            let found = read(rows, &positions);
            prop_assert_eq!(&found, &read(fork.rows(i / 3, i % 3), &positions));
            prop_assert_eq!(found.len(), positions.len());
            for (index, bytes) in found {
                prop_assert_eq!(&bytes, &expected[positions[index] as usize]);
            }
            pages += expected.len().div_ceil(page_size);
        }
        let page_bytes = Arena::allocated_bytes(page_size * shape.layout.row_bytes());
        prop_assert_eq!(store.in_use_bytes(), pages * page_bytes);
        // A fork is independent: what is appended to it is seen by it alone.
        let mut fork = fork;
        fork.append(1, 2, &row(7), &row(8)).unwrap();
        prop_assert_eq!(store.rows(1, 2).num_rows() + 1, fork.rows(1, 2).num_rows());
    }
}

#[test]
fn dropping_a_store_returns_its_bytes() {
    let arena = Arena::new("host");
    let mut store = HostStore::new(shape(4, None), arena.clone());
    for i in 0..10 {
        store.append(0, 0, &row(i), &row(i)).unwrap();
    }
    assert_eq!(arena.in_use_bytes(), 3 * Arena::allocated_bytes(4 * 16));
    assert_eq!(store.shape.bytes(10), 6 * arena.in_use_bytes());
    drop(store);
    assert_eq!(arena.in_use_bytes(), 0);
    assert_eq!(arena.peak_bytes(), 3 * Arena::allocated_bytes(4 * 16));
}

#[test]
fn refusals_name_what_was_asked() {
    let mut store = HostStore::new(shape(4, None), Arena::with_limit("host", 100));
    store.append(0, 1, &row(0), &row(0)).unwrap();
    let error = store.rows(0, 1).visit_rows(&[0, 1], &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NoSuchRow { row: 1, kv_head: 1, num_rows: 1, .. }), "{error}");
    let error = store.append(1, 0, &row(0), &row(0)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { requested_bytes: 64, in_use_bytes: 64, .. }));
    let error = store.append(0, 1, &[f32::NAN; HEAD_DIM], &[f32::NAN; HEAD_DIM]).unwrap_err();
    assert!(matches!(error, Error::Encode { layer: 0, kv_head: 1, .. }), "{error}");
    assert_eq!(store.rows(0, 1).num_rows(), 1, "a refused row is not kept");
    assert!(Arena::new("device").allocate(usize::MAX / 2).is_err());
}
