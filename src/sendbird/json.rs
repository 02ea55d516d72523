//! JSON text that serde_json has already found valid: where its parts end, and what its numbers are.
//!
//! Nothing here judges whether a text is JSON, that is serde_json's work. On a text that is not, these
//! functions give a wrong answer, but they always end and never panic.

use std::borrow::Cow;

use serde::Deserialize;

/// A text that borrows from the JSON where no escape forces a copy.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The position after the string that opens at `open`.
pub(super) fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The position after the value that starts at `start`. Counts brackets rather than recursing.
pub(super) fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'"' => string_end(bytes, at),
            b'{' | b'[' => {
                depth += 1;
                at + 1
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at + 1
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => at + 1,
            _ => scalar_end(bytes, at),
        };
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// The position after the number, `true`, `false` or `null` that starts at `start`.
pub(super) fn scalar_end(bytes: &[u8], start: usize) -> usize {
    let length = bytes[start.min(bytes.len())..]
        .iter()
        .position(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.'));
    // At least one byte further, so that a loop over any text comes to its end.
    length.map_or(bytes.len(), |length| start + length.max(1))
}

/// The position of the first byte from `at` on that is not white space.
pub(super) fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The text from `start` to `end`, or nothing where that is no part of it.
pub(super) fn part(text: &str, start: usize, end: usize) -> &str {
    text.get(start..end).unwrap_or_default()
}

/// The text that a string token, quotes included, stands for.
pub(super) fn unquote(token: &str) -> Cow<'_, str> {
    if let Ok(Text(text)) = serde_json::from_str(token) { text } else { Cow::Borrowed(token) }
}

/// The value of a number token, if it is a whole number that 64 bits hold, however it is written
/// (`1000`, `1e3`, `1000.0`).
pub(super) fn integer(token: &str) -> Option<i64> {
    token.parse().ok().or_else(|| {
        let exact = Decimal::parse(token)?;
        if exact.is_zero() {
            return Some(0);
        }
        (exact.is_whole() && exact.point <= 19).then(|| exact.write().parse().ok()).flatten()
    })
}

/// The one way to write a number: RFC 8785, that is ECMAScript's shortest text of the nearest double,
/// except where that would make two numbers one. Whole numbers keep all their digits, and what a double
/// can't hold at all (`1e400`, `1e-400`) keeps its exact value.
pub(super) fn number(token: &str) -> Cow<'_, str> {
    const EXACT_IN_A_DOUBLE: u64 = 1 << 53;
    if token != "-0" && token.parse::<i64>().is_ok_and(|whole| whole.unsigned_abs() <= EXACT_IN_A_DOUBLE) {
        return Cow::Borrowed(token);
    }
    let Some(exact) = Decimal::parse(token) else { return Cow::Borrowed(token) };
    if exact.is_zero() {
        return Cow::Borrowed("0");
    }
    let double = token.parse::<f64>().ok().filter(|double| double.is_finite() && *double != 0.0);
    let shortest = double.and_then(|double| serde_json_canonicalizer::to_string(&double).ok());
    match shortest {
        Some(shortest) if !exact.is_whole() || Decimal::parse(&shortest).as_ref() == Some(&exact) => {
            Cow::Owned(shortest)
        }
        _ => Cow::Owned(exact.write()),
    }
}

/// A number without loss: 0.`digits` times ten to the power of `point`.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Neither starts nor ends with a zero; empty for zero.
    digits: String,
    point: i64,
}

impl Decimal {
    /// `None` when the exponent is beyond 18 digits or so; such a number is left as it was written.
    fn parse(token: &str) -> Option<Self> {
        let (negative, token) = token.strip_prefix('-').map_or((false, token), |rest| (true, rest));
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let significant = all.trim_start_matches('0');
        let zeros = i64::try_from(all.len() - significant.len()).ok()?;
        let point = i64::try_from(whole.len()).ok()?.checked_sub(zeros)?;
        let digits = significant.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { negative: false, digits, point: 0 });
        }
        Some(Self { negative, digits, point: point.checked_add(exponent.parse().ok()?)? })
    }

    fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    fn is_whole(&self) -> bool {
        i64::try_from(self.digits.len()).is_ok_and(|length| length <= self.point)
    }

    /// As ECMAScript lays out a whole number, or one with an exponent. Numbers that are neither don't
    /// come here: a double holds their magnitude.
    fn write(&self) -> String {
        const LONGEST_PLAIN: i64 = 21;
        let sign = if self.negative { "-" } else { "" };
        if self.is_whole() && self.point <= LONGEST_PLAIN {
            let width = usize::try_from(self.point).unwrap_or_default();
            return format!("{sign}{:0<width$}", self.digits);
        }
        let (first, rest) = self.digits.split_at(self.digits.len().min(1));
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{sign}{first}{dot}{rest}e{:+}", self.point.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_text() {
        for (written, expected) in [
            // From RFC 8785.
            ("333333333.33333329", "333333333.3333333"),
            ("1E30", "1e+30"),
            ("4.50", "4.5"),
            ("2e-3", "0.002"),
            ("0.000000000000000000000000001", "1e-27"),
            ("295147905179352830000", "295147905179352830000"),
            ("-0", "0"),
            ("-0.0e5", "0"),
            ("5e-324", "5e-324"),
            // Other spellings of whole numbers.
            ("1.0", "1"),
            ("1e3", "1000"),
            ("10.00e-1", "1"),
            ("1767225600123.0", "1767225600123"),
            // What a double would make one.
            ("9007199254740992", "9007199254740992"),
            ("9007199254740993", "9007199254740993"),
            ("-9007199254740993.0", "-9007199254740993"),
            ("18446744073709551617", "18446744073709551617"),
            ("12345678901234567890123", "1.2345678901234567890123e+22"),
            ("1e400", "1e+400"),
            ("-0.01E402", "-1e+400"),
            ("12e-401", "1.2e-400"),
            ("1e99999999999999999999", "1e99999999999999999999"),
        ] {
            assert_eq!(number(written), expected, "{written}");
        }
    }

    #[test]
    fn integers_in_any_spelling() {
        for (written, expected) in [
            ("12", Some(12)),
            ("-12.0", Some(-12)),
            ("1.2e1", Some(12)),
            ("0.0", Some(0)),
            ("0e99999999999999999999", Some(0)),
            ("1.5", None),
            ("1e-1", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808.0", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1e400", None),
            ("1e999999999", None),
        ] {
            assert_eq!(integer(written), expected, "{written}");
        }
    }

    #[test]
    fn parts_end_where_they_end() {
        let text = br#"{"a":[1,"]\"",{}],"b":true}"#;
        assert_eq!(value_end(text, 0), text.len());
        assert_eq!(value_end(text, 5), 17);
        assert_eq!(string_end(text, 8), 13);
        assert_eq!(value_end(text, 22), 26);
        // Not JSON: some position, and an end.
        for wrong in ["\"", "\"\\", "[", "[\u{1}", "]", "", "{\"a\""] {
            assert!(value_end(wrong.as_bytes(), 0) <= wrong.len());
            assert!(string_end(wrong.as_bytes(), 0) <= wrong.len());
        }
    }
}
