//! Memory as the operating system sees it: what is free, what this process holds, and the most that it held.

use std::fs;

use anyhow::{Context, Result};

/// Share of the free memory that a case may plan to take: the rest is for scratch and for others.
const USABLE: f64 = 0.8;

/// Resident memory of this process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Now (`VmRSS`).
    pub(crate) now: u64,
    /// The most since the [last reset](reset_peak) (`VmHWM`).
    pub(crate) peak: u64,
}

/// Reads the resident memory of this process.
///
/// # Errors
/// Where the system does not tell, as everywhere but on Linux.
pub(crate) fn resident() -> Result<Resident> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let field = |name: &'static str| {
        kib_field(&status, name).with_context(|| format!("/proc/self/status has no {name}"))
    };
    Ok(Resident { now: field("VmRSS")?, peak: field("VmHWM")? })
}

/// Makes the memory held now the most that was held.
///
/// # Errors
/// Where the system refuses, as some containers do.
pub(crate) fn reset_peak() -> Result<()> {
    fs::write("/proc/self/clear_refs", "5")
        .context("cannot reset the peak of the resident memory by /proc/self/clear_refs")
}

/// What cases can have between them, one after the other. The allocator of this process keeps what a case has freed: the
/// next one has it again, though the system does not count it as free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// What the process held before the first case.
    base: u64,
}

impl Room {
    /// Before the first case.
    pub(crate) fn new() -> Self {
        Self { base: resident().map_or(u64::MAX, |resident| resident.now) }
    }

    /// Why `needed` bytes cannot be had where no case is at work; none if they can, or if the system does not say what
    /// is free.
    pub(crate) fn lack(self, needed: u64) -> Option<String> {
        let kept = resident().map_or(0, |resident| resident.now.saturating_sub(self.base));
        lack_of(needed, available()?.saturating_add(kept))
    }
}

/// Why `needed` bytes cannot be had beside all that is held; none if they can, or if the system does not say what is
/// free.
pub(crate) fn lack(needed: u64) -> Option<String> {
    lack_of(needed, available()?)
}

/// None where the system does not say.
fn available() -> Option<u64> {
    kib_field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

fn lack_of(needed: u64, available: u64) -> Option<String> {
    let usable = (available as f64 * USABLE) as u64;
    if needed <= usable {
        return None;
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Some(format!(
        "needs {:.1} GiB, and {:.1} GiB may be taken now ({:.0} % of what is free)",
        gib(needed),
        gib(usable),
        100.0 * USABLE
    ))
}

/// The field `name` of a file of lines like `VmRSS:  123 kB`, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes_and_others_are_none() {
        let text = "VmRSSx:\t9 kB\nVmHWM:\t  12 kB\nVmRSS:\t 7 pages\n";
        assert_eq!(kib_field(text, "VmHWM"), Some(12 << 10));
        assert_eq!(kib_field(text, "VmRSS"), None);
        assert_eq!(kib_field(text, "MemAvailable"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_touched_becomes_resident_and_a_reset_forgets_the_peak() {
        const BYTES: usize = 64 << 20;
        let before = resident().expect("linux tells");
        let touched = std::hint::black_box(vec![1u8; BYTES]);
        let during = resident().expect("linux tells");
        assert!(during.now >= before.now + BYTES as u64 / 2, "{before:?} {during:?}");
        assert!(during.peak >= during.now);
        drop(touched);
        if reset_peak().is_ok() {
            let after = resident().expect("linux tells");
            assert!(after.peak < during.peak, "{during:?} {after:?}");
        }
    }

    #[test]
    fn more_than_any_machine_has_is_lacking_with_both_figures() {
        if available().is_some() {
            assert!(lack(u64::MAX).expect("no machine has it").contains("GiB"));
            assert!(Room::new().lack(u64::MAX).expect("no machine has it").contains("GiB"));
        }
        assert_eq!((lack(0), Room::new().lack(0)), (None, None));
        assert_eq!(lack_of(80, 100), None);
        assert_eq!(
            lack_of(8 << 30, 8 << 30).expect("a part of it is left"),
            "needs 8.0 GiB, and 6.4 GiB may be taken now (80 % of what is free)"
        );
    }
}
