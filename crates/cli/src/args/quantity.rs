//! Numbers of tokens and of bytes as people write them.

/// Reads `4096`, `4_096`, `4k`, `4M` (thousands, millions), `4Ki`, `4Mi` (times 1024).
pub(super) fn parse_tokens(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, u64); 5] =
        [("", 1), ("k", 1_000), ("M", 1_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20)];
    let tokens = parse(text, &UNITS).and_then(|tokens| usize::try_from(tokens).ok());
    tokens.ok_or_else(|| "expected a whole number such as 4096, 32k, 4M, 32Ki or 4Mi".to_owned())
}

/// Reads a number of at least 1.
pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|&count| count >= 1);
    count.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// Reads a number of bits, not necessarily whole.
pub(super) fn parse_bits(text: &str) -> Result<f64, String> {
    let bits = text.parse().ok().filter(|&bits: &f64| bits > 0.0 && bits <= 64.0);
    bits.ok_or_else(|| "expected a number of bits above 0 and up to 64, such as 2.25".to_owned())
}

/// Reads a number of samples: all are made before the first is measured.
pub(super) fn parse_samples(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=10_000).contains(count));
    count.ok_or_else(|| "expected a whole number from 1 to 10000".to_owned())
}

/// Reads a share of a full cache's bytes, in percent.
pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|&ratio: &f64| ratio > 0.0 && ratio <= 100.0);
    ratio.ok_or_else(|| "expected a number of percent above 0 and up to 100".to_owned())
}

/// Reads a place in a text, in percent.
pub(super) fn parse_depth(text: &str) -> Result<f64, String> {
    let depth = text.parse().ok().filter(|depth| (0.0..=100.0).contains(depth));
    depth.ok_or_else(|| "expected a number of percent from 0 to 100".to_owned())
}

/// Reads the beginning of random numbers.
pub(super) fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// Reads a number of threads: more than a few times the cores only slow each other down.
pub(super) fn parse_threads(text: &str) -> Result<usize, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = cores.saturating_mul(4).max(64);
    let threads = text.parse().ok().filter(|threads| (1..=most).contains(threads));
    threads.ok_or_else(|| format!("expected a whole number from 1 to {most}, for this machine"))
}

/// Reads `80GiB`, `80GB`, `512MiB` or plain bytes.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    parse(text, &UNITS)
        .ok_or_else(|| "expected a size such as 80GiB, 24GB or 512MiB, in whole numbers".to_owned())
}

/// A whole number, `_` allowed between digits, times one of the units; None for anything else.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let &(_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    number.replace('_', "").parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits() {
        assert_eq!(["2.25", "1"].map(parse_bits), [Ok(2.25), Ok(1.0)]);
        for wrong in ["0", "-1", "nan", "inf", "65", "two", ""] {
            assert!(parse_bits(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ratios() {
        assert_eq!(["0.5", "25", "100"].map(parse_ratio), [Ok(0.5), Ok(25.0), Ok(100.0)]);
        for wrong in ["0", "-1", "100.1", "nan", "inf", "25%", ""] {
            assert!(parse_ratio(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn depths() {
        assert_eq!(["0", "12.5", "100"].map(parse_depth), [Ok(0.0), Ok(12.5), Ok(100.0)]);
        for wrong in ["-1", "100.1", "nan", "half", ""] {
            assert!(parse_depth(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4_096", 4096),
            ("4k", 4000),
            ("4M", 4_000_000),
            ("4Ki", 4096),
            ("4Mi", 4 << 20),
        ];
        for (text, tokens) in cases {
            assert_eq!(parse_tokens(text), Ok(tokens), "{text}");
        }
        for wrong in ["", "k", "-1", "4.5k", "4K", "_4", "4 k", "99999999999999999999", "1e6"] {
            assert!(parse_tokens(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes() {
        let cases = [("80GiB", 80 << 30), ("80GB", 80_000_000_000), ("17", 17), ("1_0KiB", 10240)];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for wrong in ["80G", "GiB", "80 GiB", "17179869184TiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
