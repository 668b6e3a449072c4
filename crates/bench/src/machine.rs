//! What this machine can do at most: reads in order, rows in random order, multiply-adds, and the disk.
//!
//! Every other suite is held against these figures, so that they come first and from the same run.

mod disk;
mod gather;
mod peak;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rayon::ThreadPool;

use crate::interleave::interleaved;
use crate::record::{Case, Record};
use crate::samples::Samples;
use crate::scan::Probe;
use crate::selection::Selection;

pub(crate) use disk::DiskFile;
pub(crate) use gather::Gather;

pub(crate) const SUITE: &str = "machine";

/// The cases of multiply-adds.
const MULTIPLY_ADDS: &str = "multiply-adds";

/// Row lengths of the gathers, bytes: from below the smallest row of a host store to a page of coded keys.
const ROW_BYTES: [usize; 5] = [64, 128, 256, 512, 1024];

/// How large the probes are and how often each is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Bytes of a read, and of what rows are gathered from: far more than any cache.
    pub(crate) memory_bytes: usize,
    /// Bytes of the file.
    pub(crate) file_bytes: usize,
    /// Multiply-adds of each sum in registers.
    pub(crate) num_multiply_adds: usize,
    /// Samples of each.
    pub(crate) num_rounds: usize,
}

impl Sizes {
    /// What gives figures: reads of `memory_mib`, and multiply-adds for a quarter of a second.
    pub(crate) fn of_memory(memory_mib: usize, num_rounds: usize) -> Self {
        let num_bytes = memory_mib << 20;
        Self {
            memory_bytes: num_bytes,
            file_bytes: num_bytes,
            num_multiply_adds: peak::NUM_STEPS,
            num_rounds,
        }
    }

    /// So small that answers are checked and nothing is measured.
    pub(crate) fn small(num_rounds: usize) -> Self {
        Self { memory_bytes: 1 << 20, file_bytes: 1 << 20, num_multiply_adds: 1 << 10, num_rounds }
    }
}

/// What a step can be held against, at the threads of the run.
#[derive(Clone, Debug)]
pub(crate) struct Ceilings {
    /// Bytes per second of reads in order.
    read: f64,
    /// Row bytes, and bytes per second of such rows in random order.
    rows: Vec<(usize, f64)>,
}

impl Ceilings {
    /// Seconds that reading `num_bytes` in order takes at best.
    pub(crate) fn read_seconds(&self, num_bytes: f64) -> f64 {
        num_bytes / self.read
    }

    /// GB/s of reads in order.
    pub(crate) fn read_gb_s(&self) -> f64 {
        1e-9 * self.read
    }

    /// GB/s of rows of `row_bytes` in random order: those of the nearest length that was measured.
    pub(crate) fn rows_gb_s(&self, row_bytes: usize) -> f64 {
        let nearest = self.rows.iter().min_by_key(|(measured, _)| measured.abs_diff(row_bytes));
        nearest.map_or(f64::NAN, |(_, rate)| 1e-9 * rate)
    }
}

/// Measures reads and gathers at the threads of `pool`, which the other suites need, and whatever else is wanted;
/// writes what is wanted into the record.
///
/// # Errors
/// A probe that did not read what is there, no threads, and a file that cannot be written or read.
pub(crate) fn measure(
    selection: &Selection,
    sizes: Sizes,
    pool: &ThreadPool,
    folder: &Path,
    record: &mut Record,
) -> Result<Ceilings> {
    let most = pool.current_num_threads();
    let mut read = f64::NAN;
    for num_threads in thread_counts(most) {
        let name = read_name(num_threads);
        if num_threads != most && !selection.wants(&name) {
            continue;
        }
        let case = read_case(&name, sizes, &threads(num_threads)?)?;
        if num_threads == most {
            read = bytes_per_second(&case);
        }
        push(record, selection, case);
    }
    let mut rows = Vec::new();
    for case in gather_cases(sizes, pool)? {
        rows.push((case.figure("row_bytes") as usize, bytes_per_second(&case)));
        push(record, selection, case);
    }
    if selection.wants(&format!("{SUITE}/{MULTIPLY_ADDS}")) {
        record.cases.extend(multiply_add_cases(most, sizes)?);
    }
    if [&format!("{SUITE}/disk/cold"), &format!("{SUITE}/disk/cached")]
        .iter()
        .any(|name| selection.wants(name))
    {
        disk_cases(sizes, folder)?.into_iter().for_each(|case| push(record, selection, case));
    }
    let gpu = format!("{SUITE}/gpu");
    if selection.wants(&gpu) {
        record.leave_out(gpu, "`cargo xtask bench gpu` measures it");
    }
    Ok(Ceilings { read, rows })
}

/// Multiply-adds of f32 in registers, by threads up to `most`.
///
/// # Errors
/// A wrong sum, and threads that cannot be started.
pub(crate) fn multiply_add_cases(most: usize, sizes: Sizes) -> Result<Vec<Case>> {
    let case = |num_threads: usize| {
        let (num_operations, samples) =
            peak::measure(sizes.num_rounds, sizes.num_multiply_adds, &threads(num_threads)?)?;
        let name = format!("{SUITE}/{MULTIPLY_ADDS}/{num_threads} threads");
        let case = Case::new(SUITE, name).timed(&samples);
        let case = case.with("threads", num_threads as f64);
        Ok(case.with("gflop_s", num_operations as f64 / samples.median()))
    };
    thread_counts(most).into_iter().map(case).collect()
}

fn push(record: &mut Record, selection: &Selection, case: Case) {
    if selection.wants(&case.name) {
        record.cases.push(case);
    }
}

/// 1, 2, 4 … and `most`.
fn thread_counts(most: usize) -> Vec<usize> {
    let mut counts: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n < most).collect();
    counts.push(most);
    counts
}

/// Measures reads once more, as a machine that others use does not always read as fast, and adds the samples to those
/// that `record` has.
///
/// # Errors
/// As [`measure`].
pub(crate) fn read_again(sizes: Sizes, most: usize, record: &mut Record) -> Result<()> {
    for num_threads in thread_counts(most) {
        let name = read_name(num_threads);
        let now = read_case(&name, sizes, &threads(num_threads)?)?;
        let Some(case) = record.cases.iter_mut().find(|case| case.name == name) else { continue };
        let samples = case.samples_ns.iter().chain(&now.samples_ns).copied().collect();
        let all = of_bytes(&name, &samples, now.figure("bytes") as usize);
        *case = all.with("threads", num_threads as f64);
    }
    Ok(())
}

fn read_name(num_threads: usize) -> String {
    format!("{SUITE}/read/{num_threads} threads")
}

/// A pool of `num_threads`.
///
/// # Errors
/// If they cannot be started.
pub(crate) fn threads(num_threads: usize) -> Result<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
    pool.with_context(|| format!("cannot start {num_threads} threads"))
}

/// Bytes of a case over its median time.
fn bytes_per_second(case: &Case) -> f64 {
    1e9 * case.figure("bytes") / case.summary.map_or(f64::NAN, |summary| summary.median_ns)
}

/// Finishes a case of `num_bytes` read per sample.
fn of_bytes(name: &str, samples: &Samples, num_bytes: usize) -> Case {
    let case = Case::new(SUITE, name).timed(samples).with("bytes", num_bytes as f64);
    let rate = 1e-9 * bytes_per_second(&case);
    case.with("gb_s", rate)
}

fn read_case(name: &str, sizes: Sizes, pool: &ThreadPool) -> Result<Case> {
    let mut probe = Probe::new(sizes.memory_bytes, pool);
    let mut num_bytes = probe.run(1);
    let mut samples = Samples::default();
    for _ in 0..sizes.num_rounds {
        let start = Instant::now();
        num_bytes = probe.run(1);
        samples.push(1e9 * start.elapsed().as_secs_f64());
    }
    probe.check()?;
    Ok(of_bytes(name, &samples, num_bytes).with("threads", pool.current_num_threads() as f64))
}

/// Rows of every length out of one stretch, the lengths taking turns.
fn gather_cases(sizes: Sizes, pool: &ThreadPool) -> Result<Vec<Case>> {
    let mut gather = Gather::new(sizes.memory_bytes, &ROW_BYTES, pool);
    let mut lengths: [usize; ROW_BYTES.len()] = std::array::from_fn(|length| length);
    let mut num_bytes = 0;
    let samples = interleaved(&mut lengths, sizes.num_rounds, |&mut length| {
        let start = Instant::now();
        num_bytes = gather.run(length);
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        gather.check()?;
        Ok(nanoseconds)
    })?;
    let cases = ROW_BYTES.iter().zip(samples).map(|(row_bytes, samples)| {
        let case = of_bytes(&format!("{SUITE}/rows/{row_bytes} B"), &samples, num_bytes);
        case.with("row_bytes", *row_bytes as f64).with("threads", pool.current_num_threads() as f64)
    });
    Ok(cases.collect())
}

/// One file, read from the disk and from the page cache.
fn disk_cases(sizes: Sizes, folder: &Path) -> Result<Vec<Case>> {
    let file = DiskFile::create(folder, sizes.file_bytes)?;
    let (mut cold, mut cached) = (Samples::default(), Samples::default());
    for _ in 0..sizes.num_rounds.min(3) {
        file.drop_cached()?;
        cold.push(1e9 * file.read()?);
        cached.push(1e9 * file.read()?);
    }
    let note = "one thread, blocks of 1 MiB; the host of a virtual machine may cache what its guest dropped";
    let cold = of_bytes(&format!("{SUITE}/disk/cold"), &cold, sizes.file_bytes).noting(note);
    Ok(vec![cold, of_bytes(&format!("{SUITE}/disk/cached"), &cached, sizes.file_bytes)])
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;

    #[test]
    fn threads_double_up_to_the_most() {
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(2), [1, 2]);
        assert_eq!(thread_counts(6), [1, 2, 4, 6]);
    }

    #[test]
    fn every_probe_gives_a_case_and_the_missing_gpu_is_told() {
        let pool = threads(2).expect("threads");
        let folder = tempfile::tempdir().expect("a folder");
        let sizes = Sizes::small(2);
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 2));
        let all = Selection::new(None);
        let ceilings = measure(&all, sizes, &pool, folder.path(), &mut record).expect("it runs");
        assert_eq!(record.cases.len(), 2 + ROW_BYTES.len() + 2 + 2);
        let rate = |case: &Case| case.figure("gb_s").max(case.figure("gflop_s"));
        assert!(record.cases.iter().all(|case| rate(case) > 0.0));
        assert_eq!(record.left_out.len(), 1);
        let read = |record: &Record| record.case("machine/read/2 threads").cloned().expect("it is");
        let once = read(&record);
        read_again(sizes, 2, &mut record).expect("it runs");
        let twice = read(&record);
        assert_eq!(twice.samples_ns[..2], once.samples_ns);
        assert_eq!((twice.samples_ns.len(), record.cases.len()), (4, 2 + ROW_BYTES.len() + 2 + 2));
        let median = twice.summary.expect("it is timed").median_ns;
        assert_eq!(twice.figure("gb_s"), 1e-9 * (1e9 * twice.figure("bytes") / median));
        assert!(ceilings.read_gb_s() > 0.0 && ceilings.read_seconds(1e9) > 0.0);
        assert_eq!(ceilings.rows_gb_s(66), 1e-9 * ceilings.rows[0].1);
        assert_eq!(ceilings.rows_gb_s(1 << 20), 1e-9 * ceilings.rows[4].1);
        let left = std::fs::read_dir(folder.path()).expect("it is there").count();
        assert_eq!(left, 0, "the file of the disk is gone");
    }
}
