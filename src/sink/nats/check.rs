//! `config check --connect`: asks the servers, and changes nothing there.
//!
//! Whether the user may publish to a subject, and whether the stream takes it, is answered to nobody but a publisher. So an
//! empty message is published that another stream is to take (`Nats-Expected-Stream`): the stream refuses it and says
//! so. Subscribers of core NATS to the subject get it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::NATS_EXPECTED_STREAM;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, HeaderMap, Request, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::timeout;

use super::health::Health;
use super::stream::{Asker, find, judge, make, not_taken, pattern};
use super::{CONNECT, Nats, address};
use crate::sink::{Failure, Fault, Finding, Reason};

/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The stream that is to take the messages of the check. Nobody should give a stream this name.
const NO_STREAM: &str = "sendbird-bridge-check";

pub(super) async fn check(nats: &Nats, create: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut reached = None;
    for server in &nats.servers {
        let health = Arc::new(Health::default());
        match timeout(CONNECT, nats.dial_one(server.clone(), &health)).await {
            Ok(Ok(client)) => reached = reached.or(Some((client, health, address(server)))),
            Ok(Err(failure)) => findings.push(failure.fault().clone()),
            Err(_elapsed) => findings.push(Fault {
                reason: Reason::Timeout,
                detail: format!("{}: no connection within {CONNECT:?}", address(server)),
            }),
        }
    }
    let Some((client, health, address)) = reached else { return findings.into_iter().map(Finding::Fault).collect() };
    // One server is enough, as long as it stands.
    let warned = findings.into_iter().map(|fault| Finding::Warning(format!("a server is not reached: {fault}")));
    let mut findings: Vec<Finding> = warned.collect();
    let api_prefix = nats.settings.api_prefix();
    let context = ContextBuilder::new().api_prefix(&api_prefix).timeout(ANSWER).build(client.clone());
    let version = client.server_info().version;
    let asker =
        Asker { context: &context, api_prefix: &api_prefix, health: &health, user: &nats.user, version: &version };
    match stream(nats, &asker, create, &mut findings).await {
        Ok(stream) => findings.extend(subjects(nats, &client, &health, stream).await),
        Err(failure) => {
            findings.push(Finding::Fault(failure.naming_connection(&address, &nats.user).fault().clone()));
        }
    }
    findings
}

/// Looks at the stream. Which one is to take the events; `None` if it is only to be created.
async fn stream(
    nats: &Nats,
    asker: &Asker<'_>,
    create: bool,
    findings: &mut Vec<Finding>,
) -> Result<Option<String>, Failure> {
    let (name, pattern) = (&nats.settings.stream, pattern(&nats.subject));
    let config = match (find(asker, name).await?, nats.settings.create_stream.as_option()) {
        (Ok(config), _) => config,
        (Err(_missing), Some(how)) if create => {
            let config = make(asker, name, &pattern, how).await?;
            findings.push(Finding::Created(format!("stream {name} with the subjects {pattern}")));
            config
        }
        (Err(_missing), Some(_)) => {
            may_create(asker, name).await?;
            findings.push(Finding::WillCreate(format!("stream {name} with the subjects {pattern}")));
            return Ok(None);
        }
        (Err(missing), None) => {
            let Fault { reason, detail } = missing.fault();
            return Err(Failure::every_event(*reason, format!("{detail}; create it, or set create_stream")));
        }
    };
    let (refusals, warnings) = judge(&config, &pattern, asker.version);
    findings.extend(warnings.into_iter().map(Finding::Warning));
    if !refusals.is_empty() {
        return Err(Failure::every_event(Reason::Invalid, format!("stream {name}: {}", refusals.join("; "))));
    }
    let patterns: BTreeSet<String> = nats.known.iter().map(|known| nats.subject.pattern(known)).collect();
    let not_taken = not_taken(&config, &patterns);
    if !not_taken.is_empty() {
        let (not_taken, taken) = (not_taken.join(", "), config.subjects.join(", "));
        let detail = format!("stream {name} does not take every subject of {not_taken}; it takes {taken}");
        findings.push(Finding::fault(Reason::NotFound, detail));
    }
    Ok(Some(name.clone()))
}

/// Whether a stream of this name may be created: a request without its configuration is refused, and not before the user is.
async fn may_create(asker: &Asker<'_>, name: &str) -> Result<(), Failure> {
    let (request, nothing) = (format!("STREAM.CREATE.{name}"), serde_json::json!({}));
    let answer = asker.context.request::<_, _, serde_json::Value>(request.clone(), &nothing);
    let subject = format!("{}.{request}", asker.api_prefix);
    let answered = asker.health.answer(&subject, asker.user, answer).await?;
    answered.map(|_refused| ()).map_err(|error| {
        Failure::every_event(Reason::Unavailable, format!("stream {name}: no answer to {subject}: {error}"))
    })
}

/// What a stream says of a message that another one was to take.
#[derive(Deserialize)]
struct Answer {
    stream: Option<String>,
    error: Option<AnswerError>,
}

#[derive(Deserialize)]
struct AnswerError {
    err_code: Option<ErrorCode>,
    description: Option<String>,
}

/// Asks for each kind of subject that events can have. One after the other: the client has few places for the server's reports.
async fn subjects(nats: &Nats, client: &Client, health: &Arc<Health>, stream: Option<String>) -> Vec<Finding> {
    let subjects: BTreeSet<String> =
        nats.known.iter().map(|known| nats.subject.render_known(known, NO_STREAM).0).collect();
    // What is the same for many subjects is said once.
    let mut faults: BTreeMap<String, (Reason, Vec<String>)> = BTreeMap::new();
    for subject in subjects {
        if let Err((reason, text)) = ask(nats, client, health, &subject, stream.as_deref()).await {
            let (_, subjects) = faults.entry(text).or_insert_with(|| (reason, Vec::new()));
            subjects.push(subject.replace(NO_STREAM, "*"));
        }
    }
    let said = |(text, (reason, subjects)): (String, (Reason, Vec<String>))| {
        let subjects: Vec<String> = subjects.iter().map(|subject| format!("\"{subject}\"")).collect();
        Finding::fault(reason, format!("{text}: {}", subjects.join(", ")))
    };
    faults.into_iter().map(said).collect()
}

async fn ask(
    nats: &Nats,
    client: &Client,
    health: &Arc<Health>,
    subject: &str,
    stream: Option<&str>,
) -> Result<(), (Reason, String)> {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_STREAM, NO_STREAM);
    let request = Request::new().headers(headers).payload(Bytes::new()).timeout(Some(ANSWER));
    let answer = health.answer(subject, &nats.user, client.send_request(subject.to_owned(), request)).await;
    let answer = answer.map_err(|failure| match failure {
        Failure::Fatal(Fault { reason, detail }) => (reason, detail),
        refused => (refused.fault().reason, format!("{} may not publish to", nats.user)),
    })?;
    let message = match (answer.map_err(|error| error.kind()), stream) {
        (Ok(message), _) => message,
        // Nobody takes it yet, as is to be expected.
        (Err(RequestErrorKind::NoResponders), None) => return Ok(()),
        (Err(RequestErrorKind::NoResponders), Some(_)) => {
            return Err((Reason::NotFound, "no stream takes".into()));
        }
        (Err(kind), _) => return Err((Reason::Timeout, format!("no answer within {ANSWER:?} ({kind}) about"))),
    };
    let answer: Answer = serde_json::from_slice(&message.payload).unwrap_or(Answer { stream: None, error: None });
    let code = answer.error.as_ref().and_then(|error| error.err_code);
    match (stream, answer.stream) {
        // Somebody else listens, and the stream will have to answer first.
        (Some(_), None) if code.is_none() => {
            Err((Reason::Other, "a subscriber answers where the stream is to acknowledge, on".into()))
        }
        (Some(expected), Some(other)) if other != expected => {
            Err((Reason::NotFound, format!("stream {other} takes, and not {expected},")))
        }
        (None, Some(other)) => {
            Err((Reason::NotFound, format!("the stream cannot be created while stream {other} takes")))
        }
        _ if code == Some(ErrorCode::STREAM_NOT_MATCH) || stream.is_none() => Ok(()),
        _ => {
            let said = answer.error.and_then(|error| error.description).unwrap_or_default();
            Err((Reason::Other, format!("the stream answers \"{said}\" about")))
        }
    }
}
