//! An HTTP/1.1 client that can do all that a client should not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A request, or what looks like one.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    has_length: bool,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        let headers = vec![("host".to_owned(), "bridge".to_owned())];
        Self { method: method.into(), target: target.into(), headers, body: Vec::new(), has_length: false }
    }

    /// Without any header, as every one is the test's to choose.
    pub(crate) fn bare(method: &str, target: &str) -> Self {
        Self { headers: Vec::new(), ..Self::new(method, target) }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// The same to another place.
    pub(crate) fn to(mut self, target: &str) -> Self {
        self.target = target.into();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A body with its length.
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self.has_length = true;
        self
    }

    /// A body in chunks of `size` bytes, without a length.
    pub(crate) fn chunked(mut self, body: &[u8], size: usize) -> Self {
        self.headers.push(("transfer-encoding".into(), "chunked".into()));
        self.body.clear();
        for chunk in body.chunks(size) {
            self.body.extend(format!("{:x}\r\n", chunk.len()).bytes());
            self.body.extend(chunk);
            self.body.extend(b"\r\n");
        }
        self.body.extend(b"0\r\n\r\n");
        self.has_length = false;
        self
    }

    /// The head, to its empty line.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.has_length {
            head += &format!("content-length: {}\r\n", self.body.len());
        }
        (head + "\r\n").into_bytes()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.head(), self.body.clone()].concat()
    }

    /// Sends it over a connection of its own.
    pub(crate) fn send(&self, address: SocketAddr) -> Response {
        self.try_send(address).unwrap_or_else(|error| panic!("no answer to {} {}: {error}", self.method, self.target))
    }

    /// Sends it where the answer has no body, whatever its head says, and gives the status.
    pub(crate) fn send_head(&self, address: SocketAddr) -> u16 {
        let mut connection = Connection::open(address);
        connection.write(&self.bytes());
        connection.try_head().expect("an answer").0
    }

    pub(crate) fn try_send(&self, address: SocketAddr) -> io::Result<Response> {
        let mut connection = Connection::try_open(address)?;
        connection.stream().write_all(&self.bytes())?;
        connection.try_response()
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The id and status of a delivery that was answered 200.
    #[track_caller]
    pub(crate) fn accepted(&self) -> (String, String) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        (body["id"].as_str().unwrap().to_owned(), body["status"].as_str().unwrap().to_owned())
    }

    /// The id of a delivery that was stored.
    #[track_caller]
    pub(crate) fn stored(&self) -> String {
        let (id, status) = self.accepted();
        assert_eq!(status, "stored");
        id
    }

    /// The id of a delivery that was known.
    #[track_caller]
    pub(crate) fn duplicate(&self) -> String {
        let (id, status) = self.accepted();
        assert_eq!(status, "duplicate");
        id
    }

    /// It is a problem document of this status, and nothing of the request is in it.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let body = self.json();
        assert_eq!(body["type"], "about:blank");
        assert_eq!(body["status"], status);
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        let all = format!("{:?} {}", self.headers, self.text()).to_lowercase();
        assert!(!all.contains("canary"), "the request comes back in {all}");
        assert_eq!(self.header("retry-after").is_some(), matches!(status, 429 | 503), "{self:?}");
        assert_eq!(self.header("allow").is_some(), status == 405, "{self:?}");
        self
    }
}

/// An open connection.
pub(crate) struct Connection<S = TcpStream>(BufReader<S>);

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap_or_else(|error| panic!("no connection to {address}: {error}"))
    }

    pub(crate) fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::over(stream))
    }

    /// Sends no more, and goes on reading.
    pub(crate) fn finish_writing(&mut self) {
        self.stream().shutdown(Shutdown::Write).unwrap();
    }
}

impl<S: Read + Write> Connection<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    fn stream(&mut self) -> &mut S {
        self.0.get_mut()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).expect("a connection that takes bytes");
    }

    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream().write_all(bytes)
    }

    #[track_caller]
    pub(crate) fn send(&mut self, request: &Request) -> Response {
        self.write(&request.bytes());
        self.response()
    }

    #[track_caller]
    pub(crate) fn response(&mut self) -> Response {
        self.try_response().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// The next answer, with its whole body.
    pub(crate) fn try_response(&mut self) -> io::Result<Response> {
        let (status, headers) = self.try_head()?;
        let find = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let mut body = Vec::new();
        if let Some(length) = find("content-length") {
            body = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut body)?;
        } else if find("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        }
        Ok(Response { status, headers, body })
    }

    /// The head of the next answer; its body is left to be read.
    pub(crate) fn try_head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("expected a status line, but found {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok((status, headers)) };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a body, or `None` after the last.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = usize::from_str_radix(&line, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Whether the other side has closed the connection, waiting for that.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.0.fill_buf() {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}
