//! Memory is bounded, as the store counts it and as the system does.

use heterokv_offload::{DryRun, OsFiles, StoreShape};

use crate::*;

/// Bytes of the process that are in RAM.
#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
}

/// Streams twenty times its budget through a store, and reads it again.
#[test]
#[cfg(target_os = "linux")]
fn a_stream_of_twenty_budgets_takes_one() {
    const BUDGET: usize = 24 << 20;
    /// What a store takes beside its budget here, other tests of this process included.
    const BESIDE: usize = 16 << 20;
    let folder = tempfile::tempdir().unwrap();
    let layout = RowLayout { key: None, value: RowFormat::Int8, head_dim: 64 };
    let shape = StoreShape { num_layers: 1, num_kv_heads: 2, page_size: 256, layout };
    let disk = disk(Arc::new(OsFiles::default()), folder.path());
    let store = Store::open(StoreOptions {
        shape,
        ram_budget_bytes: BUDGET,
        disk: Some(DiskOptions { file_bytes: 64 << 20, ..disk }),
    })
    .unwrap();
    let mut sequence = store.sequence();
    let rows: Vec<f32> = (0..1024 * 64).map(|i| (i % 251) as f32).collect();
    let before = resident_bytes();
    let mut most = 0;
    while sequence.in_use_bytes() < 20 * BUDGET {
        sequence.append(0, 0, &rows, &rows).unwrap();
        sequence.append(0, 1, &rows, &rows).unwrap();
        most = most.max(resident_bytes());
    }
    let mut num_bytes = 0;
    for head in 0..2 {
        let rows = sequence.rows(0, head);
        let positions: Vec<u32> = (0..rows.num_rows() as u32).collect();
        for positions in positions.chunks(1 << 15) {
            rows.visit_rows(positions, &mut |page| num_bytes += page.bytes.len()).unwrap();
            most = most.max(resident_bytes());
        }
    }
    assert_eq!(num_bytes, sequence.in_use_bytes());
    let stats = store.stats();
    assert!(stats.ram_peak.bytes <= BUDGET && stats.slab_bytes <= BUDGET, "{stats:?}");
    let grown = most - before;
    println!("grew by {grown} bytes under a budget of {BUDGET}, {} on disk", stats.disk.bytes);
    assert!(grown < BUDGET + BESIDE, "{grown}");
    drop((sequence, store));
    assert_eq!(OsFiles::default().names(folder.path()).unwrap(), ["lock"]);
}

#[test]
fn a_dry_run_says_what_a_budget_holds() {
    let shape = shape(4);
    // 101 rows in four heads are 26 pages each, the last of which is not full.
    let run = shape.dry_run(101, 50 * 64 + 63);
    let expected = DryRun {
        ram_pages: 50,
        ram_bytes: 50 * 64,
        disk_pages: 54,
        disk_bytes: 54 * 64,
        is_enough: true,
    };
    assert_eq!(run, expected);
    assert!(!shape.dry_run(101, 4 * 64).is_enough, "no room beside the last pages");
    assert!(shape.dry_run(101, 5 * 64).is_enough);
    assert_eq!(shape.dry_run(0, 0), DryRun { is_enough: true, ..DryRun::default() });
    assert_eq!(shape.dry_run(101, usize::MAX).ram_bytes, shape.bytes(101));

    let store = open(Arc::new(crate::sim::Sim::default()), 50).unwrap();
    let mut sequence = store.sequence();
    for head in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        append(&mut sequence, head, 1, 101).unwrap();
    }
    assert_eq!(store.dry_run(50 * 64 + 63), expected);
    assert_eq!(store.dry_run(usize::MAX).ram_pages, 104);
    assert!(!store.dry_run(4 * 64).is_enough);
}
