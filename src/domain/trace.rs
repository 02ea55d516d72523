//! The trace that a delivery belongs to: the header `traceparent` of [W3C Trace Context](https://www.w3.org/TR/trace-context/).
//!
//! What a delivery brought is passed on, so that a consumer's spans join those of the sender, or of the proxy in front of
//! the bridge. Where the bridge makes a span of its own (`traces`), that one's name goes on instead, in the same trace.

use std::fmt;

/// A valid `traceparent` of version 00: who sees one knows that it is 55 plain characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent([u8; Self::LENGTH]);

impl TraceParent {
    /// The name of the header and of the CloudEvents attribute.
    pub const NAME: &str = "traceparent";

    /// Bytes of version 00: `00-{32 hex digits}-{16 hex digits}-{2 hex digits}`.
    const LENGTH: usize = 55;

    /// Reads a header. `None` is anything else than the standard allows, which is to be ignored: upper case, an id of
    /// zeros alone, a text too long. A version of the future is read as far as it is known and becomes version 00
    /// with the one flag that this has, as the standard asks.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (known, rest) = header.split_first_chunk::<{ Self::LENGTH }>()?;
        let dashes = [2, 35, 52];
        let well_formed = known.iter().enumerate().all(|(at, byte)| match byte {
            b'-' => dashes.contains(&at),
            b'0'..=b'9' | b'a'..=b'f' => !dashes.contains(&at),
            _ => false,
        });
        let zeros = |from: usize, to: usize| known[from..to].iter().all(|byte| *byte == b'0');
        if !well_formed || zeros(3, 35) || zeros(36, 52) {
            return None;
        }
        let mut kept = *known;
        match &known[..2] {
            b"00" => rest.is_empty().then_some(Self(kept)),
            b"ff" => None,
            _ if rest.first().is_some_and(|byte| *byte != b'-') => None,
            _ => {
                let sampled = char::from(known[54]).to_digit(16)? & 1 == 1;
                kept[..2].copy_from_slice(b"00");
                kept[53..].copy_from_slice(if sampled { b"01" } else { b"00" });
                Some(Self(kept))
            }
        }
    }

    /// The name of a span.
    pub fn of(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        Self::parse(format!("00-{}-{}-{:02x}", hex::encode(trace), hex::encode(span), u8::from(sampled)).as_bytes())
    }

    /// The trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.id(3)
    }

    /// The span that whoever reads this is a child of.
    pub fn span_id(&self) -> [u8; 8] {
        self.id(36)
    }

    /// Whether those before have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        let digit = char::from(self.0[54]).to_digit(16);
        digit.is_some_and(|digit| digit & 1 == 1)
    }

    fn id<const N: usize>(&self, from: usize) -> [u8; N] {
        let mut id = [0; N];
        // Only hex digits were let in, and the ids have their places.
        hex::decode_to_slice(&self.0[from..from + 2 * N], &mut id).unwrap_or_default();
        id
    }

    /// The text, as it goes on.
    pub fn as_str(&self) -> &str {
        // Only ASCII was let in.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parsed(header: &str) -> Option<String> {
        TraceParent::parse(header.as_bytes()).map(|trace| trace.as_str().to_owned())
    }

    #[test]
    fn what_is_valid_stays_as_it_is() {
        for valid in [GIVEN.to_owned(), GIVEN.replace("-01", "-00"), GIVEN.replace("-01", "-ff")] {
            assert_eq!(parsed(&valid), Some(valid));
        }
    }

    #[test]
    fn what_the_standard_does_not_allow_is_ignored() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let too_long = format!("{GIVEN}-00");
        let invalid = [
            "",
            "00",
            &GIVEN[..54],
            &zero_trace,
            &zero_parent,
            &too_long,
            &format!("{GIVEN} "),
            &format!(" {GIVEN}"),
            &GIVEN.to_uppercase(),
            &GIVEN.replace('f', "g"),
            &GIVEN.replace('-', "_"),
            &GIVEN.replace("-0", "0-"),
            &GIVEN.replacen("00", "ff", 1),
            &GIVEN.replacen("00", "0-", 1),
            &format!("{}01", GIVEN.replacen("00", "01", 1)),
        ];
        for header in invalid {
            assert_eq!(parsed(header), None, "{header:?}");
        }
    }

    #[test]
    fn a_version_of_the_future_becomes_ours() {
        let future = GIVEN.replacen("00", "cc", 1);
        assert_eq!(parsed(&future).as_deref(), Some(GIVEN));
        assert_eq!(parsed(&format!("{future}-what-will-be")).as_deref(), Some(GIVEN));
        assert_eq!(parsed(&future.replace("-01", "-fe")), Some(GIVEN.replace("-01", "-00")));
    }

    #[test]
    fn ids_of_zeros_name_no_span() {
        assert_eq!(TraceParent::of([0; 16], [1; 8], true), None);
        assert_eq!(TraceParent::of([1; 16], [0; 8], true), None);
    }

    proptest! {
        #[test]
        fn any_valid_one_is_kept(trace in 1u128.., parent in 1u64.., flags: u8) {
            let header = format!("00-{trace:032x}-{parent:016x}-{flags:02x}");
            prop_assert_eq!(parsed(&header), Some(header));
        }

        #[test]
        fn what_is_made_of_parts_has_them(trace in 1u128.., span in 1u64.., sampled: bool) {
            let made = TraceParent::of(trace.to_be_bytes(), span.to_be_bytes(), sampled).unwrap();
            prop_assert_eq!(made.trace_id(), trace.to_be_bytes());
            prop_assert_eq!(made.span_id(), span.to_be_bytes());
            prop_assert_eq!(made.is_sampled(), sampled);
        }

        /// One byte of a valid one put wrong, by whatever bytes: what comes out is valid again, or nothing.
        #[test]
        fn whatever_comes_in_only_a_valid_one_comes_out(
            mut header in prop_oneof![Just(GIVEN.as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 0..80)],
            at: prop::sample::Index,
            byte: u8,
        ) {
            if !header.is_empty() {
                let at = at.index(header.len());
                header[at] = byte;
            }
            if let Some(trace) = TraceParent::parse(&header) {
                let text = trace.as_str();
                prop_assert!(text.len() == 55 && text.starts_with("00-"), "{text}");
                prop_assert_eq!(TraceParent::parse(text.as_bytes()), Some(trace));
                prop_assert!(header.starts_with(&text.as_bytes()[2..53]) || header[2..].starts_with(&text.as_bytes()[2..53]));
            }
        }
    }
}
