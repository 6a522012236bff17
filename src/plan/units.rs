//! Bytes and times as people write them: `100MiB` and `1GiB/s` on the command line, `34m 20s` in the report.

use std::time::Duration;

use super::timeline::real;

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Whole bytes with a unit.
pub fn size(text: &str) -> Result<u64, String> {
    let (amount, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), *bytes)))
        .ok_or_else(|| format!("{text:?} has no unit: write 100MiB (B, KiB, MiB, GiB, TiB, kB, MB, GB or TB)"))?;
    let amount: Option<u64> = amount.parse().ok().filter(|_| amount.bytes().all(|byte| byte.is_ascii_digit()));
    let bytes = amount.and_then(|amount| amount.checked_mul(unit)).filter(|bytes| *bytes <= 1 << 50);
    bytes.ok_or_else(|| format!("{text:?} is not a whole number of bytes up to 1024 TiB, such as 100MiB"))
}

/// Bytes a second.
pub fn rate(text: &str) -> Result<u64, String> {
    let amount = text.strip_suffix("/s").ok_or_else(|| format!("{text:?} is not a rate such as 1GiB/s"))?;
    size(amount).and_then(|bytes| if bytes == 0 { Err("must be more than 0".to_owned()) } else { Ok(bytes) })
}

/// A span in at most nine columns.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 if span.is_zero() => "0 s".to_owned(),
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = real(u128::from(bytes));
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 10.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("100MiB", 100 << 20), ("1 GiB", 1 << 30), ("5kB", 5000), ("0B", 0), ("1024TiB", 1 << 50)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "100", "MiB", "-1MiB", "+1MiB", "1.5GiB", "1025TiB", "100mib", "1GiB/s"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(rate("1GiB/s"), Ok(1 << 30));
        for text in ["1GiB", "0B/s", "/s", "1GiB/h"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
