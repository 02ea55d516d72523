//! The deliveries of a load: `direct_call:end` of one length, each of a call of its own, signed before the load begins.
//!
//! A delivery is its number. All have the same text but for a few digits, which are written into a copy of it when it is
//! sent; only the signatures are kept, so that a million deliveries need 64 MB. The number stands in the body as a note of
//! [`NOTE`] digits, by which a reader finds it in what arrived at a broker.

use ring::hmac::{HMAC_SHA256, Key, sign};

/// What the deliveries are signed with.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

/// The digits of a note.
const NOTE: usize = 16;

/// What precedes a note in a body, and in every message that contains the body.
const BEFORE_NOTE: &str = r#""note":""#;

/// A signature in hexadecimal.
pub type Signature = [u8; 64];

/// The text that all deliveries share, and where they differ.
pub struct Template {
    text: Vec<u8>,
    call: usize,
    times: [usize; 2],
    note: usize,
}

impl Template {
    /// For bodies of so many bytes; as many as it takes, if these are too few.
    pub fn new(bytes: usize) -> Self {
        let mut text = String::from(r#"{"category":"direct_call:end","occurred_at":"#);
        let occurred = add(&mut text, "0000000000000");
        text += r#","application_id":"0A1B2C3D-1111-4222-8333-444455556666","direct_call":{"call_id":""#;
        let call = add(&mut text, "00000000-0000-0000-0000-000000000000");
        text += r#"","caller_id":"alice","callee_id":"bob","custom_items":{"#;
        text += BEFORE_NOTE;
        let note = add(&mut text, &"0".repeat(NOTE));
        text += r#"","filler":""#;
        let before_end = r#""},"end_result":"completed","ended_by":"bob","ended_at":"#;
        let end = r#","duration":124324},"result":"completed"}"#;
        let room = bytes.saturating_sub(text.len() + before_end.len() + 13 + end.len());
        text.extend(
            (0..room as u64).map(|at| char::from(b"abcdefghijklmnopqrstuvwxyz012345"[(mix(at) % 32) as usize])),
        );
        text += before_end;
        let ended = add(&mut text, "0000000000000");
        text += end;
        Self { text: text.into_bytes(), call, times: [occurred, ended], note }
    }

    /// The length of each body.
    pub fn length(&self) -> usize {
        self.text.len()
    }

    /// A body, with room before it for `before`.
    pub fn behind(&self, before: &[u8]) -> Vec<u8> {
        [before, &self.text].concat()
    }

    /// Makes a body, which is a copy of the text, that of this delivery.
    pub fn write(&self, number: u64, body: &mut [u8]) {
        self.call(number, &mut body[self.call..][..36]);
        for at in self.times {
            digits(1_790_000_000_000 + number % 1_000_000_000, &mut body[at..][..13]);
        }
        digits(number, &mut body[self.note..][..NOTE]);
    }

    /// The body of this delivery.
    pub fn body(&self, number: u64) -> Vec<u8> {
        let mut body = self.text.clone();
        self.write(number, &mut body);
        body
    }

    /// The id of a body's call.
    pub fn call_id<'a>(&self, body: &'a [u8]) -> &'a str {
        std::str::from_utf8(&body[self.call..][..36]).unwrap_or_default()
    }

    fn call(&self, number: u64, out: &mut [u8]) {
        let bytes = [mix(number), mix(!number)].map(u64::to_be_bytes).concat();
        let mut at = 0;
        for (index, byte) in bytes.into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                out[at] = b'-';
                at += 1;
            }
            for half in [byte >> 4, byte & 15] {
                out[at] = b"0123456789ABCDEF"[usize::from(half)];
                at += 1;
            }
        }
    }
}

/// The signatures of so many deliveries from the number `first` on.
pub fn sign_all(template: &Template, first: u64, count: usize) -> Vec<Signature> {
    let mut signatures = vec![[0; 64]; count];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (index, signatures) in signatures.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let key = Key::new(HMAC_SHA256, TOKEN.as_bytes());
                let mut body = template.body(0);
                for (number, signature) in (first + (index * share) as u64..).zip(signatures) {
                    template.write(number, &mut body);
                    // Twice as long as the digest, so it doesn't fail.
                    let _infallible = hex::encode_to_slice(sign(&key, &body), signature);
                }
            });
        }
    });
    signatures
}

/// The number of the delivery whose body a message contains.
pub fn number_in(message: &[u8]) -> Option<u64> {
    let before = BEFORE_NOTE.as_bytes();
    let at = message.windows(before.len()).position(|window| window == before)? + before.len();
    std::str::from_utf8(message.get(at..at + NOTE)?).ok()?.parse().ok()
}

/// Adds a part that differs, and returns where it begins.
fn add(text: &mut String, part: &str) -> usize {
    text.push_str(part);
    text.len() - part.len()
}

fn digits(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// SplitMix64: another number for each number, with no pattern that a hash table or a partitioner would see.
fn mix(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_json_of_the_length_that_was_asked_for() {
        for bytes in [512, 1024, 16384] {
            let template = Template::new(bytes);
            let body = template.body(1_234_567);
            assert_eq!((body.len(), template.length()), (bytes, bytes));
            let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(json["category"], "direct_call:end");
            assert_eq!(json["direct_call"]["call_id"], template.call_id(&body));
            assert_eq!(json["occurred_at"], json["direct_call"]["ended_at"]);
            assert_eq!(number_in(&[b"{\"data\":", &body[..], b"}"].concat()), Some(1_234_567));
        }
    }

    #[test]
    fn deliveries_differ_and_are_signed_by_their_numbers() {
        let template = Template::new(1024);
        let signatures = sign_all(&template, 7, 1001);
        let key = Key::new(HMAC_SHA256, TOKEN.as_bytes());
        for (number, signature) in (7..).zip(&signatures) {
            let body = template.body(number);
            assert_ne!(template.call_id(&body), template.call_id(&template.body(number + 1)));
            assert_eq!(hex::encode(sign(&key, &body)).as_bytes(), signature);
        }
    }
}
