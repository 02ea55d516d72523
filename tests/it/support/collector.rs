//! A collector of traces: takes OTLP over HTTP as its specification has it, read with OpenTelemetry's own types.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Otlp;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::bridge::Config;
use super::eventually;

/// How a collector answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It takes all.
    Takes,
    /// It takes all but so many.
    Refuses(i64),
    /// Another status.
    Status(u16),
    /// It never does, and keeps the connection.
    Hangs,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) answer: Answer,
}

/// A span in words that tests compare.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for a span that begins its trace.
    pub(crate) parent: String,
    pub(crate) links: Vec<(String, String)>,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) flags: u32,
    pub(crate) begun_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) failed: bool,
}

impl Span {
    fn new(span: Otlp) -> Self {
        let links = span.links.iter().map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id)));
        Self {
            trace: hex::encode(&span.trace_id),
            id: hex::encode(&span.span_id),
            parent: hex::encode(&span.parent_span_id),
            links: links.collect(),
            kind: span.kind(),
            flags: span.flags,
            begun_ns: span.start_time_unix_nano,
            ended_ns: span.end_time_unix_nano,
            failed: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
            attributes: words(span.attributes),
            name: span.name,
        }
    }

    #[track_caller]
    pub(crate) fn says(&self, key: &str) -> &str {
        self.attributes.get(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }

    pub(crate) fn says_category(&self) -> Option<&str> {
        self.attributes.get("sendbird_bridge.category").map(String::as_str)
    }

    pub(crate) fn is_delivery(&self) -> bool {
        self.kind == SpanKind::Server
    }

    /// What a message names that is a child of it.
    pub(crate) fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

fn words(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let word = |value| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => panic!("expected a text, a number or a flag, but found {other:?}"),
    };
    let count = attributes.len();
    let words = attributes.into_iter().map(|pair| (pair.key, word(pair.value.and_then(|value| value.value))));
    let words: BTreeMap<String, String> = words.collect();
    assert_eq!(words.len(), count, "no attribute stands twice: {words:?}");
    words
}

/// A collector on a port of its own, for as long as the test runs.
#[derive(Clone)]
pub(crate) struct Collector {
    address: SocketAddr,
    scheme: &'static str,
    got: Arc<Mutex<Vec<Got>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    then: Answer,
}

impl Collector {
    /// Takes whatever comes.
    pub(crate) fn start() -> Self {
        Self::answering(&[], Answer::Takes)
    }

    /// Answers the first requests so, and all others so.
    pub(crate) fn answering(first: &[Answer], then: Answer) -> Self {
        Self::new("http", first, then, None)
    }

    /// Takes whatever comes over TLS.
    pub(crate) fn secure(config: ServerConfig) -> Self {
        Self::new("https", &[], Answer::Takes, Some(Arc::new(config)))
    }

    fn new(scheme: &'static str, first: &[Answer], then: Answer, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(first.iter().copied().collect()));
        let collector = Self { address, scheme, got: Arc::default(), answers, then };
        let accepting = collector.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (serving, tls) = (accepting.clone(), tls.clone());
                let stream = stream.unwrap();
                thread::spawn(move || match tls {
                    None => serving.serve(stream),
                    Some(config) => serving.serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
                });
            }
        });
        collector
    }

    /// A bridge that sends its traces here.
    pub(crate) fn config(&self, config: Config) -> Config {
        config.set("traces.endpoint", &format!("'{}://{}'", self.scheme, self.address))
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The spans of all requests that were answered with a yes, in the order in which they came.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let taken = self.got().into_iter().filter(|got| matches!(got.answer, Answer::Takes | Answer::Refuses(_)));
        let requests = taken.map(|got| ExportTraceServiceRequest::decode(got.body.as_slice()).expect("OTLP"));
        let scopes = requests.flat_map(|request| request.resource_spans).flat_map(|spans| spans.scope_spans);
        scopes.flat_map(|scope| scope.spans).map(Span::new).collect()
    }

    /// What all spans of the first request share.
    pub(crate) fn resource(&self) -> BTreeMap<String, String> {
        let got = self.got();
        let request = ExportTraceServiceRequest::decode(got[0].body.as_slice()).expect("OTLP");
        words(request.resource_spans[0].resource.clone().expect("a resource").attributes)
    }

    /// Waits for so many spans, and gives those of deliveries and those of publishes.
    #[track_caller]
    pub(crate) fn wait_for(&self, deliveries: usize, publishes: usize) -> (Vec<Span>, Vec<Span>) {
        let mut found = (Vec::new(), Vec::new());
        eventually("the spans are exported", || {
            found = self.spans().into_iter().partition(Span::is_delivery);
            found.0.len() >= deliveries && found.1.len() >= publishes
        });
        assert_eq!((found.0.len(), found.1.len()), (deliveries, publishes), "{found:#?}");
        found
    }

    fn serve<S: Read + Write>(&self, stream: S) {
        let mut stream = BufReader::new(stream);
        while let Some((path, headers)) = head(&mut stream) {
            let mut body = vec![0; headers["content-length"].parse().unwrap()];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            let answer = self.answers.lock().unwrap().pop_front().unwrap_or(self.then);
            self.got.lock().unwrap().push(Got { path, headers, body, answer });
            let (status, partial_success) = match answer {
                Answer::Takes => (200, None),
                Answer::Refuses(rejected_spans) => {
                    (200, Some(ExportTracePartialSuccess { rejected_spans, error_message: "too many".into() }))
                }
                Answer::Status(status) => (status, None),
                Answer::Hangs => loop {
                    thread::park();
                },
            };
            let body = ExportTraceServiceResponse { partial_success }.encode_to_vec();
            let head = format!(
                "HTTP/1.1 {status} it\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let answer = [head.into_bytes(), body].concat();
            if stream.get_mut().write_all(&answer).and_then(|()| stream.get_mut().flush()).is_err() {
                return;
            }
        }
    }
}

/// The path and the headers of the next request; `None` when there is no more.
fn head(stream: &mut impl BufRead) -> Option<(String, BTreeMap<String, String>)> {
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        let read = stream.read_line(&mut line).unwrap_or(0);
        (read > 0).then(|| line.trim_end().to_owned())
    });
    let first = lines.next()?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Some((path, headers.collect()))
}
