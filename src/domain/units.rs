//! Durations and sizes as an operator writes them: always with a unit.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A duration such as `800ms`, `1h` or `1m 30s`; never negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// A span of so many milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// A span of so many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// In milliseconds, at most `i64::MAX`.
    pub fn as_millis(&self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok()).map(Self).ok_or_else(
            || format!("expected a duration with a unit, such as \"800ms\" or \"24h\", but found \"{text}\""),
        )
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As people write it, in the largest unit that needs no other: "90s", not "1m 30s".
        match (self.0.as_secs(), jiff::SignedDuration::try_from(self.0)) {
            (0, Ok(span)) => write!(f, "{span:#}"),
            (_, Ok(span)) if self.0.subsec_nanos() > 0 => write!(f, "{span:#}"),
            (seconds, _) if seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            (seconds, _) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            (seconds, _) => write!(f, "{seconds}s"),
        }
    }
}

/// A number of bytes such as `256KiB` or `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// So many KiB (1,024 bytes).
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }

    /// So many MiB (1,048,576 bytes).
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }

    /// So many GiB (1,073,741,824 bytes).
    pub const fn gib(n: u64) -> Self {
        Self(n * 1024 * 1024 * 1024)
    }

    /// As a number of bytes in memory.
    pub fn as_usize(&self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = text.trim_end().chars().next_back().is_some_and(char::is_alphabetic);
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if unit => Ok(Self(size.as_u64())),
            _ => Err(format!("expected a size with a unit, such as \"256KiB\" or \"1GiB\", but found \"{text}\"")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 8] = [
            ("TiB", 1 << 40),
            ("TB", 1_000_000_000_000),
            ("GiB", 1 << 30),
            ("GB", 1_000_000_000),
            ("MiB", 1 << 20),
            ("MB", 1_000_000),
            ("KiB", 1 << 10),
            ("kB", 1_000),
        ];
        let whole = UNITS.iter().find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes));
        let (unit, bytes) = whole.unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

/// Reads an address with its port, for serde.
///
/// # Errors
/// What was expected and what was found.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_no_address| {
        de::Error::custom(format!(
            "expected an address such as \"127.0.0.1:8080\" or \"[::]:8080\", but found \"{text}\""
        ))
    })
}

macro_rules! as_text {
    ($type:ty, $what:literal, $pattern:literal) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $what, "pattern": $pattern })
            }
        }
    };
}

as_text!(Span, "a duration with a unit, such as \"800ms\" or \"24h\"", "^\\s*\\d.*[a-zµ]\\s*$");
as_text!(Size, "a size with a unit, such as \"256KiB\" or \"1GiB\"", "^\\s*\\d.*[A-Za-z]\\s*$");

/// A time in seconds as people say it, in its largest unit, and the next where that is large: `12 s`, `12 min`,
/// `3 h 20 min`, `31 h`, `5 d`.
pub fn age(seconds: f64) -> String {
    // A cast ends at the largest number that there is.
    let seconds = seconds.max(0.0) as u64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min"),
        (1..10, _) if minutes % 60 > 0 => format!("{hours} h {} min", minutes % 60),
        (0..72, _) => format!("{hours} h"),
        _ => format!("{} d", hours / 24),
    }
}

/// A number with its digits in groups of three: `4,310`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn ages_and_numbers_are_as_people_say_them() {
        let ages = [0.4, 59.0, 61.0, 3_600.0, 12_000.0, 111_600.0, 432_000.0, -1.0].map(age);
        assert_eq!(ages, ["0 s", "59 s", "1 min", "1 h", "3 h 20 min", "31 h", "5 d", "0 s"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("800ms".parse(), Ok(Span::from_millis(800)));
        assert_eq!("24h".parse(), Ok(Span::from_secs(86_400)));
        assert_eq!("1m 30s".parse(), Ok(Span::from_secs(90)));
        for wrong in ["800", "", "-1s", "1 parsec", "ms"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Span>("800").is_err());
    }

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!("256KiB".parse(), Ok(Size::kib(256)));
        assert_eq!("8GiB".parse(), Ok(Size::gib(8)));
        assert_eq!("1.5 MiB".parse(), Ok(Size::kib(1536)));
        assert_eq!("100B".parse(), Ok(Size(100)));
        for wrong in ["256", "", "KiB", "-1KiB", "1 stone"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        for span in [Span::from_millis(800), Span::from_secs(3600), Span::from_secs(86_400), Span::from_millis(1500)] {
            assert_eq!(span.to_string().parse(), Ok(span), "{span}");
        }
        assert_eq!((Size(8_000_000_000).to_string(), Size(1023).to_string()), ("8GB".into(), "1023B".into()));
        for size in [Size::kib(256), Size::gib(8), Size(1000), Size::kib(1536), Size(0), Size(1_500_000)] {
            assert_eq!(size.to_string().parse(), Ok(size), "{size}");
        }
        assert_eq!((Span::from_secs(86_400).to_string(), Size::gib(8).to_string()), ("24h".into(), "8GiB".into()));
        for text in ["0s", "90s", "5m", "90m", "1h", "100s", "1500ms"] {
            assert_eq!(text.parse(), Ok(text.parse::<Span>().unwrap().to_string().parse::<Span>().unwrap()));
        }
        assert_eq!([90, 300, 5400].map(|seconds| Span::from_secs(seconds).to_string()), ["90s", "5m", "90m"]);
    }
}
