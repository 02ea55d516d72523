//! Spans as OTLP has them: names, kinds and attributes after OpenTelemetry's conventions for HTTP and for messaging.
//!
//! All that stands here comes from the configuration, from closed sets, or is an id. What a sender wrote is never copied.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::{self as otlp, ResourceSpans, ScopeSpans, Status};

use super::Outcome;
use super::span::{DeliverySpan, Ids, PublishSpan, Span, Times};

/// A status that says that something failed.
const ERROR: i32 = 2;

/// The trace is recorded.
const SAMPLED: u32 = 0x01;

/// It is known whether the parent is of another process.
const PARENT_IS_KNOWN: u32 = 0x100;

/// The parent is of another process.
const PARENT_IS_REMOTE: u32 = 0x200;

/// Stands in a path where the secret does.
pub const PATH_SECRET: &str = "{path_secret}";

/// What a span of a delivery tells of the webhook.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The path, with [`PATH_SECRET`] in place of one.
    pub path: String,
}

/// What all spans of a bridge share.
#[derive(Debug)]
pub(super) struct Shared {
    /// `service.name`.
    pub(super) service: String,
    /// `service.instance.id`: another one for each start.
    pub(super) instance: String,
    /// Of the webhook.
    pub(super) endpoint: Webhook,
}

impl Shared {
    /// A batch as it is sent.
    pub(super) fn request(&self, spans: &[Span]) -> ExportTraceServiceRequest {
        let version = env!("CARGO_PKG_VERSION");
        let attributes = vec![
            text("service.name", &self.service),
            text("service.version", version),
            text("service.instance.id", &self.instance),
        ];
        let resource = Resource { attributes, ..Resource::default() };
        let name = env!("CARGO_PKG_NAME").to_owned();
        let scope = InstrumentationScope { name, version: version.to_owned(), ..InstrumentationScope::default() };
        let spans = spans.iter().map(|span| self.span(span)).collect();
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }
    }

    fn span(&self, span: &Span) -> otlp::Span {
        match span {
            Span::Delivery(span) => self.delivery(span),
            Span::Publish(span) => publish(span),
        }
    }

    fn delivery(&self, span: &DeliverySpan) -> otlp::Span {
        let Webhook { scheme, path } = &self.endpoint;
        let remote = if span.ids.parent.is_some() { PARENT_IS_REMOTE } else { 0 };
        let mut out = begun(&span.ids, &span.times, SpanKind::Server, PARENT_IS_KNOWN | remote);
        out.name = format!("POST {path}");
        out.attributes = vec![
            text("http.request.method", "POST"),
            text("http.route", path),
            text("url.path", &path.replace(PATH_SECRET, "REDACTED")),
            text("url.scheme", scheme),
        ];
        if let Some((id, category)) = span.event {
            out.attributes.push(text("cloudevents.event_id", &id.to_string()));
            out.attributes.push(text("sendbird_bridge.category", category));
        }
        let outcome = match span.answer.map(|answer| answer.outcome) {
            Some(Outcome::Stored) => "stored",
            Some(Outcome::Duplicate) => "duplicate",
            Some(Outcome::Refused(_)) => "refused",
            None => "unanswered",
        };
        out.attributes.push(text("sendbird_bridge.outcome", outcome));
        if let Some(answer) = span.answer {
            out.attributes.push(number("http.response.status_code", answer.status.into()));
            if let Outcome::Refused(reason) = answer.outcome {
                out.attributes.push(text("sendbird_bridge.reason", reason));
            }
            if answer.status >= 500 {
                out.attributes.push(text("error.type", &answer.status.to_string()));
                out.status = Some(failed(""));
            }
        }
        out
    }
}

/// The message carries the trace context of the delivery, whatever the number of sinks. OpenTelemetry's conventions then
/// ask for a span of kind client with a link to that context. The span is also its child, so that it shows in the trace
/// of the delivery.
fn publish(span: &PublishSpan) -> otlp::Span {
    let mut out = begun(&span.ids, &span.times, SpanKind::Client, 0);
    let destination = &span.destination;
    out.name = "publish".into();
    out.attributes = vec![
        text("messaging.system", destination.system),
        text("messaging.operation.name", "publish"),
        text("messaging.operation.type", "send"),
        text("messaging.message.id", &span.event),
        text("sendbird_bridge.sink", &destination.sink),
        text("sendbird_bridge.category", span.end.category),
        number("sendbird_bridge.retries", span.end.retries.into()),
        flag("sendbird_bridge.resend", span.end.resend),
    ];
    if let Some(template) = &destination.template {
        out.name = format!("publish {template}");
        out.attributes.push(text("messaging.destination.template", template));
    }
    if let Some(reason) = span.end.refused {
        out.attributes.push(text("error.type", reason));
        out.status = Some(failed("set aside"));
    }
    let span_id = out.parent_span_id.clone();
    out.links = vec![Link { trace_id: out.trace_id.clone(), span_id, flags: SAMPLED, ..Link::default() }];
    out
}

fn begun(ids: &Ids, times: &Times, kind: SpanKind, flags: u32) -> otlp::Span {
    otlp::Span {
        trace_id: ids.trace.to_vec(),
        span_id: ids.span.to_vec(),
        parent_span_id: ids.parent.map_or_else(Vec::new, |parent| parent.to_vec()),
        flags: SAMPLED | flags,
        kind: kind.into(),
        start_time_unix_nano: times.begun_ns,
        end_time_unix_nano: times.ended_ns,
        ..otlp::Span::default()
    }
}

fn failed(message: &str) -> Status {
    Status { message: message.to_owned(), code: ERROR }
}

fn text(key: &str, text: &str) -> KeyValue {
    attribute(key, Value::StringValue(text.to_owned()))
}

fn number(key: &str, number: i64) -> KeyValue {
    attribute(key, Value::IntValue(number))
}

fn flag(key: &str, flag: bool) -> KeyValue {
    attribute(key, Value::BoolValue(flag))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::Answer;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

    fn delivery(answer: Option<Answer>) -> otlp::Span {
        let ids = Ids { trace: [1; 16], span: [2; 8], parent: None };
        let span = DeliverySpan { ids, times: Times { begun_ns: 1, ended_ns: 2 }, event: None, answer };
        let endpoint = Webhook { scheme: "http", path: "/".into() };
        Shared { service: "s".into(), instance: "i".into(), endpoint }.delivery(&span)
    }

    fn says(span: &otlp::Span, key: &str) -> Option<Value> {
        span.attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value
    }

    #[test]
    fn what_is_our_own_failure_is_an_error() {
        let span = delivery(Some(Answer { status: 503, outcome: Outcome::Refused("deadline") }));
        assert_eq!(span.status.as_ref().map(Status::code), Some(StatusCode::Error));
        assert_eq!(says(&span, "error.type"), Some(Value::StringValue("503".into())));
        assert_eq!(says(&span, "sendbird_bridge.reason"), Some(Value::StringValue("deadline".into())));
        let span = delivery(Some(Answer { status: 400, outcome: Outcome::Refused("malformed") }));
        assert_eq!((&span.status, says(&span, "error.type")), (&None, None));
    }

    #[test]
    fn who_hung_up_was_answered_nothing() {
        let span = delivery(None);
        assert_eq!(says(&span, "sendbird_bridge.outcome"), Some(Value::StringValue("unanswered".into())));
        assert_eq!((&span.status, says(&span, "http.response.status_code")), (&None, None));
        assert_eq!((span.flags, span.parent_span_id.len()), (SAMPLED | PARENT_IS_KNOWN, 0));
    }
}
