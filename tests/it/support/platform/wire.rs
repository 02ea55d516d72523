//! HTTP/1.1 as far as the platform needs it: heads, bodies with a length, answers with a length.

use std::io::{Read, Write};

use serde_json::{Value, json};

/// No client under test has more to send.
const LARGEST: usize = 256 * 1024;

/// A request.
pub(super) struct Incoming {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Incoming {
    /// All values of a header.
    pub(super) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    kind: &'static str,
    retry_after: Option<u64>,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self { status, kind: "application/json; charset=utf-8", retry_after: None, body: body.to_string().into() }
    }

    /// An error, as it is documented.
    pub(super) fn error(status: u16, code: u32, kind: &str, message: &str) -> Self {
        Self::json(status, &json!({ "error": true, "code": code, "type": kind, "message": message }))
    }

    /// A page that a proxy might give.
    pub(super) fn page(status: u16) -> Self {
        let body = format!("<html><body>{status}</body></html>\n");
        Self { status, kind: "text/html", retry_after: None, body: body.into() }
    }

    pub(super) fn retry_after(mut self, seconds: Option<u64>) -> Self {
        self.retry_after = seconds;
        self
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Status\r\ncontent-type: {}\r\n", self.status, self.kind);
        if let Some(seconds) = self.retry_after {
            head += &format!("retry-after: {seconds}\r\n");
        }
        if self.status == 302 {
            head += "location: /elsewhere\r\n";
        }
        head + &format!("content-length: {}\r\n\r\n", self.body.len())
    }
}

/// The next request; `None` at the end of the connection, or of what can be understood. `left` is what was read of the
/// one after it.
pub(super) fn read(stream: &mut impl Read, left: &mut Vec<u8>) -> Option<Incoming> {
    let end = loop {
        if let Some(end) = left.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        more(stream, left)?;
    };
    let head = String::from_utf8(left.drain(..end + 4).collect()).ok()?;
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Option<Vec<_>> = lines
        .map(|line| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())))
        .collect();
    let mut incoming = Incoming { method, target, headers: headers?, body: Vec::new() };
    let length = match incoming.header("content-length")[..] {
        [] => 0,
        [length] => length.parse().ok()?,
        _ => return None,
    };
    while left.len() < length {
        more(stream, left)?;
    }
    incoming.body = left.drain(..length).collect();
    Some(incoming)
}

fn more(stream: &mut impl Read, left: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let read = stream.read(&mut buffer).ok().filter(|read| *read > 0 && left.len() < LARGEST)?;
    left.extend_from_slice(&buffer[..read]);
    Some(())
}

/// Whether the client took it.
pub(super) fn write(stream: &mut impl Write, answer: &Answer) -> bool {
    let head = answer.head();
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&answer.body))
        .and_then(|()| stream.flush())
        .is_ok()
}

/// The head, and half of the body.
pub(super) fn write_half(stream: &mut impl Write, answer: &Answer) {
    let half = &answer.body[..answer.body.len() / 2];
    stream.write_all(answer.head().as_bytes()).and_then(|()| stream.write_all(half)).and_then(|()| stream.flush()).ok();
}
