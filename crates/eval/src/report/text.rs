//! Numbers as people read them.

/// Three digits that count; a power of ten where it is small or large.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(0.000_999..1e7).contains(&size) {
        let text = format!("{value:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", without_zeros(digits));
    }
    let digits = (2 - size.log10().floor() as i32).max(0) as usize;
    without_zeros(&format!("{value:.digits$}")).to_owned()
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// A share as percent, which no line break parts.
pub(super) fn percent(share: f64) -> String {
    format!("{}\u{a0}%", short(100.0 * share))
}

/// Tokens: Ki and Mi are 1,024 and its square, where the number is a multiple.
pub(super) fn tokens(tokens: f64) -> String {
    let whole = tokens as u64;
    match whole {
        0 => short(tokens),
        _ if whole.is_multiple_of(1 << 20) => format!("{}Mi", whole >> 20),
        _ if whole.is_multiple_of(1 << 10) => format!("{}Ki", whole >> 10),
        _ => short(tokens),
    }
}

/// The unit that bytes are written in where this is the most, and how many it has.
pub(super) fn byte_unit(most: f64) -> (&'static str, f64) {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().map(|(name, power)| (name, f64::from(1 << power)));
    unit.into_iter().find(|&(_, size)| most >= size).unwrap_or(("bytes", 1.0))
}

/// Bytes with their unit.
pub(super) fn bytes(bytes: f64) -> String {
    let (unit, size) = byte_unit(bytes);
    format!("{} {unit}", short(bytes / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        let shown = [0.0, 0.001, 1e-5, 12.5, 1234.0, -0.0423, 99.96, 2.5e9].map(short);
        assert_eq!(shown, ["0", "0.001", "1e-5", "12.5", "1234", "-0.0423", "100", "2.5e9"]);
        assert_eq!(short(f64::NAN), "NaN");
        assert_eq!(
            [512.0, 1024.0, 131_072.0, 1_048_576.0].map(tokens),
            ["512", "1Ki", "128Ki", "1Mi"]
        );
        assert_eq!([0.0, 2048.0, 3.5 * 1_048_576.0].map(bytes), ["0 bytes", "2 KiB", "3.5 MiB"]);
        assert_eq!(percent(0.125), "12.5\u{a0}%");
    }
}
