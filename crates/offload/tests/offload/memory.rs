//! Memory is bounded, as the store counts it and as the system does.

use heterokv_offload::DryRun;

use crate::*;

/// Bytes of the process that are in RAM.
#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
}

/// What the store takes beside its budget: for each page, in whichever tier; and in all, with what the test itself has.
#[cfg(target_os = "linux")]
const BESIDE: (usize, usize) = (250, 2 << 20);

/// Streams twenty times its budget through a store, and reads it again, in a process that does nothing else.
#[test]
#[cfg(target_os = "linux")]
fn a_stream_of_twenty_budgets_takes_one() {
    for reads in real_reads().iter().map(|reads| format!("{reads:?}")) {
        let mut stream = std::process::Command::new(std::env::current_exe().unwrap());
        stream.args(["memory::stream", "--exact", "--nocapture"]).env(READS, &reads);
        let output = stream.output().unwrap();
        print!("{reads}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Says how the process that streams is to read.
#[cfg(target_os = "linux")]
const READS: &str = "HETEROKV_STREAM_READS";

#[test]
#[cfg(target_os = "linux")]
fn stream() {
    const BUDGET: usize = 6 << 20;
    let Ok(reads) = std::env::var(READS) else { return };
    let named = real_reads().into_iter().find(|one| format!("{one:?}") == reads);
    let reads = named.expect("it is one of them");
    let folder = folder();
    let layout = RowLayout { key: None, value: RowFormat::Int8, head_dim: 64 };
    let shape = StoreShape { num_layers: 1, num_kv_heads: 2, page_size: 256, layout };
    let disk = disk(Arc::new(OsFiles { reads }), folder.path());
    let store = Store::open(StoreOptions {
        shape,
        ram_budget_bytes: BUDGET,
        disk: Some(DiskOptions { file_bytes: 64 << 20, ..disk }),
    })
    .unwrap();
    let mut sequence = store.sequence();
    let rows: Vec<f32> = (0..1024 * 64).map(|i| (i % 251) as f32).collect();
    let before = resident_bytes();
    let mut most = before;
    while sequence.in_use_bytes() < 20 * BUDGET {
        sequence.append(0, 0, &rows, &rows).unwrap();
        sequence.append(0, 1, &rows, &rows).unwrap();
        most = most.max(resident_bytes());
    }
    let mut num_bytes = 0;
    for head in 0..2 {
        let rows = sequence.rows(0, head);
        let num_rows = rows.num_rows() as u32;
        for start in (0..num_rows).step_by(1 << 14) {
            let positions: Vec<u32> = (start..num_rows.min(start + (1 << 14))).collect();
            rows.visit_rows(&positions, &mut |page| {
                num_bytes += page.rows.len() * layout.row_bytes()
            })
            .unwrap();
            most = most.max(resident_bytes());
        }
    }
    assert_eq!(num_bytes, sequence.in_use_bytes());
    let stats = store.stats();
    assert!(stats.ram_peak.bytes <= BUDGET && stats.slab_bytes <= BUDGET, "{stats:?}");
    let grown = most - before;
    println!("grew by {grown} bytes under a budget of {BUDGET}, {} on disk", stats.disk.bytes);
    assert!(grown < BUDGET + BESIDE.0 * stats.disk.pages + BESIDE.1, "{grown}");
    drop((sequence, store));
    assert_eq!(OsFiles::default().names(folder.path()).unwrap(), ["lock"]);
}

/// The most bytes of address space that the process has had.
#[cfg(target_os = "linux")]
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Opens thousands of tables with hostile numbers in a process that does nothing else.
#[test]
#[cfg(target_os = "linux")]
fn a_hostile_table_takes_no_memory() {
    let grown = |what: &str| {
        let mut tables = std::process::Command::new(std::env::current_exe().unwrap());
        // The system's allocator takes much for each thread otherwise.
        tables.env(TABLES, what).env("MALLOC_ARENA_MAX", "1");
        let output = tables.args(["memory::tables", "--exact", "--nocapture"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("grew by ")).unwrap();
        line.trim_end_matches(" bytes").parse::<usize>().unwrap()
    };
    let [hostile, allocated] = ["hostile", "allocated"].map(grown);
    println!("hostile tables took {hostile} bytes of address space at most");
    assert!(hostile < 64 << 20, "{hostile}");
    assert!(allocated > 64 << 20, "what takes some is seen to: {allocated}");
}

/// Says what the process is to do.
#[cfg(target_os = "linux")]
const TABLES: &str = "HETEROKV_HOSTILE_TABLES";

#[test]
#[cfg(target_os = "linux")]
fn tables() {
    let Ok(what) = std::env::var(TABLES) else { return };
    // With its threads' stacks.
    drop(open(Arc::new(crate::sim::Sim::default()), 4).unwrap());
    let before = peak_bytes();
    if what == "hostile" {
        crate::hostile::hostile_tables();
    } else {
        std::hint::black_box(vec![0_u8; 100 << 20]);
    }
    println!("grew by {} bytes", peak_bytes() - before);
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
        least_bytes: 5 * 64,
    };
    assert_eq!(run, expected);
    assert!(!shape.dry_run(101, 4 * 64).is_enough, "no room beside the last pages");
    assert!(shape.dry_run(101, 5 * 64).is_enough);
    // All pages are full: one at a time is enough.
    assert_eq!(shape.dry_run(100, 64).least_bytes, 64);
    assert!(shape.dry_run(100, 64).is_enough && !shape.dry_run(100, 63).is_enough);
    // There are no more pages than those that take rows.
    assert_eq!(shape.dry_run(3, 256).least_bytes, 4 * 64);
    assert!(shape.dry_run(3, 256).is_enough && !shape.dry_run(3, 255).is_enough);
    assert_eq!(shape.dry_run(0, 0), DryRun { is_enough: true, ..DryRun::default() });
    assert_eq!(shape.dry_run(101, usize::MAX).ram_bytes, shape.bytes(101));
    let beyond = shape.dry_run(usize::MAX, usize::MAX);
    assert_eq!((beyond.ram_bytes > 1 << 60, beyond.disk_bytes), (true, usize::MAX));
    assert_eq!(shape.bytes(usize::MAX), usize::MAX);

    let store = open(Arc::new(crate::sim::Sim::default()), 50).unwrap();
    let mut sequence = store.sequence();
    for head in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        append(&mut sequence, head, 1, 101).unwrap();
    }
    // With nothing on its way.
    store.shutdown().unwrap();
    assert_eq!(store.dry_run(50 * 64 + 63), expected);
    assert_eq!(store.dry_run(usize::MAX).ram_pages, 104);
    assert!(!store.dry_run(4 * 64).is_enough);
    // What is saved need not stay in RAM, and what takes rows beside it must.
    sequence.save("talk").unwrap();
    assert_eq!(store.stats().dirty_pages, 0);
    let mut others = [store.sequence(), store.sequence()];
    others.iter_mut().for_each(|other| append(other, (0, 0), 1, 1).unwrap());
    assert!(!store.dry_run(2 * 64).is_enough);
    assert!(store.dry_run(3 * 64).is_enough);
}
