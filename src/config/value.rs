//! How one value is read: durations, addresses, numbers, words.
//!
//! Each function takes a TOML value and gives what it means, or the reason why it means nothing.
//! They know neither keys nor lines; the tables of `model` and `registry` choose them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use humantime::{format_duration, parse_duration};
use ipnet::IpNet;
use toml::de::DeValue;

use super::fraction::Fraction;
use super::share::Share;
use crate::target::{Host, HostPattern, Origin};

/// The meaning of a value, or the reason why it has none.
pub(crate) type Parsed<T> = Result<T, String>;

/// The most of anything that is counted. More is a slip of the pen, and would not fit a machine.
pub(crate) const MAX_COUNT: u32 = 1_000_000;

/// The longest duration of any setting: a week. More is a slip of the unit.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The greatest rate of bytes. More is a slip of the unit.
const MAX_BYTES_PER_SECOND: u64 = 1000 << 20;

/// A duration with its unit, more than 0 and up to a week.
pub(crate) fn duration(value: &DeValue<'_>) -> Parsed<Duration> {
    let text = match value {
        DeValue::String(text) => text,
        DeValue::Integer(number) => return Err(no_unit(number.as_str())),
        DeValue::Float(number) => return Err(no_unit(number.as_str())),
        other => return Err(expected("a duration such as \"5s\"", other)),
    };
    let duration =
        parse_duration(text).map_err(|error| format!("{text:?} is not a duration such as \"5s\": {error}"))?;
    if duration.is_zero() {
        return Err("must be longer than 0".to_owned());
    }
    if duration > MAX_DURATION {
        return Err(format!("must be at most {}", format_duration(MAX_DURATION)));
    }
    Ok(duration)
}

fn no_unit(number: &str) -> String {
    format!("a plain number has no unit: write \"{number}s\"")
}

pub(super) fn address(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    let text = quoted(value)?;
    text.parse()
        .map_err(|_| format!("{text:?} is not an IP address and port, such as \"127.0.0.1:4128\" or \"[::1]:4128\""))
}

/// A range of client addresses, or a single one.
pub(super) fn network(value: &DeValue<'_>) -> Parsed<IpNet> {
    let text = quoted(value)?;
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let range = text.parse().ok().or_else(single);
    range
        .map(|range: IpNet| range.trunc())
        .ok_or_else(|| format!("{text:?} is not an address range, such as \"10.0.0.0/8\" or \"fd00::/8\""))
}

pub(super) fn host(value: &DeValue<'_>) -> Parsed<HostPattern> {
    HostPattern::parse(quoted(value)?).map_err(|error| error.to_string())
}

pub(super) fn name(value: &DeValue<'_>) -> Parsed<Host> {
    let text = quoted(value)?;
    let pattern = HostPattern::parse(text).ok().filter(|pattern| pattern.port().is_none());
    let host = pattern.as_ref().and_then(HostPattern::exact_host).filter(|host| host.ip().is_none());
    host.cloned().ok_or_else(|| format!("{text:?} is not a name alone, such as \"harbor.example.com\""))
}

/// The URL of a host, or a list of them, each once.
pub(super) fn origins(value: &DeValue<'_>) -> Parsed<Vec<Origin>> {
    let origins = match value {
        DeValue::Array(urls) if urls.is_empty() => return Err("is empty: write at least one URL".to_owned()),
        DeValue::Array(urls) => urls.iter().map(|url| origin(url.get_ref())).collect::<Parsed<Vec<Origin>>>()?,
        url => vec![origin(url)?],
    };
    match origins.iter().enumerate().find(|(index, origin)| origins[..*index].contains(origin)) {
        Some((_, twice)) => Err(format!("{twice} is listed twice: remove one")),
        None => Ok(origins),
    }
}

fn origin(value: &DeValue<'_>) -> Parsed<Origin> {
    let text = quoted(value)?;
    Origin::parse(text).map_err(|error| format!("{text:?} is not the URL of a host: {error}"))
}

pub(crate) fn path(value: &DeValue<'_>) -> Parsed<PathBuf> {
    let text = quoted(value)?;
    if text.is_empty() { Err("is empty: write the path of a file".to_owned()) } else { Ok(PathBuf::from(text)) }
}

/// A path that the kernel takes for a socket, also with `.new` behind it.
pub(super) fn socket_path(value: &DeValue<'_>) -> Parsed<PathBuf> {
    const MOST: usize = 103;
    let path = path(value)?;
    let fits = path.is_absolute() && path.as_os_str().len() <= MOST;
    if fits { Ok(path) } else { Err(format!("write a path that begins with / and has {MOST} bytes at most")) }
}

/// A whole number from a range.
pub(crate) fn whole(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Parsed<u32> {
    move |value| {
        let DeValue::Integer(number) = value else {
            return Err(expected("a whole number", value));
        };
        let number = u32::from_str_radix(number.as_str(), number.radix()).ok();
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// The same, for numbers that count things in memory.
pub(super) fn count(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Parsed<usize> {
    let whole = whole(range);
    move |value| {
        let number = whole(value)?;
        Ok(usize::try_from(number).expect("a usize has at least 32 bits on every supported system"))
    }
}

/// A number that may have decimals, exact.
pub(super) fn decimal(value: &DeValue<'_>) -> Parsed<Fraction> {
    let text = number_text(value).ok_or_else(|| expected("a number", value))?;
    Fraction::decimal(&text).ok_or_else(|| "must be a number, 0 or more, with at most 18 digits".to_owned())
}

/// Bytes a second: `"1KiB/s"`.
pub(super) fn bytes_per_second(value: &DeValue<'_>) -> Parsed<NonZeroU64> {
    const UNITS: [(&str, u64); 5] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("kB", 1_000), ("MB", 1_000_000), ("B", 1)];
    let text = quoted(value)?;
    let (amount, unit) = text
        .strip_suffix("/s")
        .and_then(|amount| UNITS.iter().find_map(|(unit, size)| Some((amount.strip_suffix(unit)?.trim_end(), *size))))
        .unwrap_or_default();
    let digits = amount.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = amount.parse().ok().filter(|_| digits).and_then(|amount: u64| amount.checked_mul(unit));
    let bytes = bytes.filter(|bytes| *bytes <= MAX_BYTES_PER_SECOND).and_then(NonZeroU64::new);
    bytes.ok_or_else(|| {
        format!("{text:?} is not a rate such as \"1KiB/s\", of at least 1 B/s and at most 1000 MiB/s (B, kB, KiB, MB or MiB)")
    })
}

pub(super) fn share(value: &DeValue<'_>) -> Parsed<Share> {
    let number = || number_text(value).ok_or_else(|| expected("a share such as \"1/20\", \"5%\" or 0.05", value));
    let share = if let DeValue::String(text) = value { Share::parse(text) } else { Share::parse(&number()?) };
    share.map_err(|error| error.to_string())
}

pub(super) fn flag(value: &DeValue<'_>) -> Parsed<bool> {
    match value {
        DeValue::Boolean(flag) => Ok(*flag),
        other => Err(expected("true or false", other)),
    }
}

/// One word of a closed set.
pub(super) fn word<T: Copy, const N: usize>(words: [(&'static str, T); N]) -> impl Fn(&DeValue<'_>) -> Parsed<T> {
    move |value| {
        let text = quoted(value)?;
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("{text:?} is not one of {}", all.join(", "))
        })
    }
}

/// A string.
pub(crate) fn text(value: &DeValue<'_>) -> Parsed<String> {
    quoted(value).map(str::to_owned)
}

/// A setting that may be absent.
pub(crate) fn some<T>(read: impl Fn(&DeValue<'_>) -> Parsed<T>) -> impl Fn(&DeValue<'_>) -> Parsed<Option<T>> {
    move |value| read(value).map(Some)
}

/// An address on this machine.
pub(super) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn quoted<'a>(value: &'a DeValue<'_>) -> Parsed<&'a str> {
    value.as_str().ok_or_else(|| expected("a string in quotes", value))
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", found.type_str())
}

/// The shortest decimal text of a number, whatever radix it was written in, never with an exponent. It says 0.29 where the
/// float in memory is a little less, so that 0.29 of 100 is 29.
fn number_text(value: &DeValue<'_>) -> Option<String> {
    let (text, number) = match value {
        DeValue::Integer(it) => {
            (it.as_str(), i64::from_str_radix(it.as_str(), it.radix()).ok().map(|it| it.to_string()))
        }
        DeValue::Float(it) => (it.as_str(), it.as_str().parse().ok().map(|it: f64| it.to_string())),
        _ => return None,
    };
    Some(number.unwrap_or_else(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `toml` as a single value.
    fn read<T>(toml: &str, read: impl Fn(&DeValue<'_>) -> Parsed<T>) -> Parsed<T> {
        read(DeValue::parse(toml).unwrap().get_ref())
    }

    fn reason<T: std::fmt::Debug>(toml: &str, by: impl Fn(&DeValue<'_>) -> Parsed<T>) -> String {
        read(toml, by).unwrap_err()
    }

    #[test]
    fn durations_have_units() {
        for (toml, millis) in [
            ("'5s'", 5_000),
            ("'500ms'", 500),
            ("'1m 30s'", 90_000),
            ("'30m'", 1_800_000),
            ("'0.5s'", 500),
            ("'7days'", 604_800_000),
        ] {
            assert_eq!(read(toml, duration), Ok(Duration::from_millis(millis)), "{toml}");
        }
        for (toml, expected) in [
            ("5", "a plain number has no unit: write \"5s\""),
            ("2.5", "a plain number has no unit: write \"2.5s\""),
            ("'5'", "\"5\" is not a duration such as \"5s\""),
            ("''", "\"\" is not a duration"),
            ("'-5s'", "\"-5s\" is not a duration"),
            ("'5 parsecs'", "unknown time unit"),
            ("'0s'", "must be longer than 0"),
            ("'8days'", "must be at most 7days"),
            ("true", "expected a duration such as \"5s\", found boolean"),
        ] {
            let reason = reason(toml, duration);
            assert!(reason.contains(expected), "{toml}: {reason}");
        }
    }

    #[test]
    fn addresses_are_numeric() {
        for toml in ["'127.0.0.1:4128'", "'[::1]:0'", "'0.0.0.0:65535'"] {
            assert!(read(toml, address).is_ok(), "{toml}");
        }
        for toml in ["'localhost:4128'", "'127.0.0.1'", "':4128'", "4128", "'127.0.0.1:65536'"] {
            assert!(read(toml, address).is_err(), "{toml}");
        }
    }

    #[test]
    fn networks_may_be_single_addresses() {
        for (toml, expected) in [
            ("'10.0.0.0/8'", "10.0.0.0/8"),
            ("'10.1.2.3/8'", "10.0.0.0/8"),
            ("'10.1.2.3'", "10.1.2.3/32"),
            ("'fd00::1'", "fd00::1/128"),
        ] {
            assert_eq!(read(toml, network).unwrap().to_string(), expected);
        }
        assert!(reason("'10.0.0.0/33'", network).contains("10.0.0.0/33"));
    }

    #[test]
    fn whole_numbers_stay_in_their_range() {
        for (toml, expected) in [("1", 1), ("1_000", 1000), ("0x10", 16)] {
            assert_eq!(read(toml, whole(1..=1000)), Ok(expected));
        }
        for toml in ["0", "1001", "-1", "99999999999999999999"] {
            let expected = "must be a whole number from 1 to 1000";
            assert_eq!(reason(toml, whole(1..=1000)), expected, "{toml}");
        }
        for toml in ["1.0", "'5'", "true"] {
            assert!(reason(toml, whole(1..=1000)).starts_with("expected a whole number"));
        }
    }

    #[test]
    fn rates_of_bytes_have_a_unit_and_a_second() {
        for (toml, bytes) in
            [("'1KiB/s'", 1024), ("'16 MiB/s'", 16 << 20), ("'5kB/s'", 5000), ("'2MB/s'", 2_000_000), ("'700B/s'", 700)]
        {
            assert_eq!(read(toml, bytes_per_second).unwrap().get(), bytes, "{toml}");
        }
        for toml in [
            "'1KiB'",
            "'KiB/s'",
            "'0B/s'",
            "'1.5KiB/s'",
            "'+1B/s'",
            "'1001MiB/s'",
            "'1kib/s'",
            "'99999999999999999999B/s'",
        ] {
            assert!(reason(toml, bytes_per_second).contains("is not a rate such as \"1KiB/s\""), "{toml}");
        }
        assert!(reason("1024", bytes_per_second).starts_with("expected a string"));
    }

    #[test]
    fn shares_come_as_text_or_number() {
        for (toml, expected) in [
            ("'1/20'", "1/20"),
            ("'5%'", "1/20"),
            ("'0.05'", "1/20"),
            ("0.05", "1/20"),
            ("5e-2", "1/20"),
            ("0.29", "29/100"),
            ("1", "1"),
            ("1.0", "1"),
            ("0x1", "1"),
        ] {
            assert_eq!(read(toml, share).unwrap().to_string(), expected, "{toml}");
        }
        for toml in ["0", "2", "1.01", "-0.5", "nan", "inf", "1e-300", "[1]"] {
            assert!(read(toml, share).is_err(), "{toml}");
        }
    }

    #[test]
    fn words_come_from_a_closed_set() {
        let choice = word([("direct", 1), ("deny", 2)]);
        assert_eq!(read("'deny'", &choice), Ok(2));
        assert_eq!(reason("'Deny'", &choice), r#""Deny" is not one of "direct", "deny""#);
        assert_eq!(reason("1", &choice), "expected a string in quotes, found integer");
    }
}
