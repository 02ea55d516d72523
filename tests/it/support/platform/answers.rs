//! Who may ask, how often, for what, and the webhook settings.

use std::net::SocketAddr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::wire::{Answer, Incoming};
use super::{API_TOKEN, APPLICATION, Paths, State, lists};

/// What a request without an answer of its own gets.
pub(super) fn invalid(message: &str) -> Answer {
    Answer::error(400, 400_111, "InvalidParameters", message)
}

/// A value of a wrong type.
pub(super) fn mistyped(message: &str) -> Answer {
    Answer::error(400, 400_100, "InvalidParameterType", message)
}

pub(super) fn not_found(what: &str) -> Answer {
    Answer::error(400, 400_200, "NotFound", &format!("{what} not found"))
}

/// The one error that has no `error`.
pub(super) fn limited() -> Answer {
    Answer::json(429, &json!({ "code": 429_100, "type": "TooManyRequests", "message": "Too many requests" }))
}

/// A request's answer; what it changes is changed.
pub(super) fn answer(state: &mut State, incoming: &Incoming, address: SocketAddr) -> Answer {
    if let Some(wrong) = wrong_head(incoming, address) {
        return invalid(&wrong);
    }
    match incoming.header("api-token")[..] {
        [API_TOKEN] => {}
        [_] => return Answer::error(401, 401_120, "InvalidApiToken", "API token is not allowed"),
        _ => return Answer::error(401, 401_121, "ApiTokenRequired", "exactly one API token is needed"),
    }
    let (path, query) = incoming.target.split_once('?').unwrap_or((&incoming.target, ""));
    let Some(path) = path.strip_prefix("/v1/") else { return Answer::page(404) };
    let segments: Vec<String> = path.split('/').map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let endpoint = endpoint(&segments);
    if !in_limits(state, &format!("{} {endpoint}", incoming.method), incoming.method == "GET") {
        return limited();
    }
    let Ok(query) = parameters(query) else { return invalid("a parameter comes twice, or has no value") };
    match (incoming.method.as_str(), &segments[..]) {
        ("GET" | "PUT", ["applications", application, "settings", "webhook"]) => match state.paths {
            Paths::WithoutApplication => Answer::page(404),
            Paths::WithApplication if application.eq_ignore_ascii_case(APPLICATION) => {
                settings(state, incoming, &query)
            }
            Paths::WithApplication | Paths::WithoutApplicationOrFound => not_found("application"),
        },
        ("GET" | "PUT", ["applications", "settings", "webhook"]) if state.paths != Paths::WithApplication => {
            settings(state, incoming, &query)
        }
        ("GET", ["direct_calls"]) => lists::calls(state, &query),
        ("GET", ["direct_calls", id]) => one(&state.calls, "call_id", id).unwrap_or_else(|| not_found("direct call")),
        ("GET", ["rooms"]) => lists::rooms(state, &query),
        ("GET", ["rooms", id]) => match state.rooms.iter().find(|room| room["room_id"] == **id) {
            Some(room) => Answer::json(200, &json!({ "room": room })),
            None => not_found("room"),
        },
        ("GET", ["rooms", id, "participants"]) => lists::participants(state, id, &query),
        _ => Answer::page(404),
    }
}

fn one(list: &[Value], name: &str, id: &str) -> Option<Answer> {
    list.iter().find(|value| value[name] == id).map(|value| Answer::json(200, value))
}

/// What Sendbird's pages say that every request has.
fn wrong_head(incoming: &Incoming, address: SocketAddr) -> Option<String> {
    let expected = [("host", address.to_string()), ("content-type", "application/json; charset=utf8".to_owned())];
    for (name, value) in expected {
        if incoming.header(name) != [value.as_str()] {
            return Some(format!("expected the header {name}: {value}, but found {:?}", incoming.header(name)));
        }
    }
    if incoming.method == "GET" && !incoming.body.is_empty() {
        return Some("a GET has no body".into());
    }
    let chunked = !incoming.header("transfer-encoding").is_empty();
    chunked.then(|| "a body has a length".into())
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// What the rate limits count by: the path, whatever its ids.
fn endpoint(segments: &[&str]) -> String {
    match segments {
        ["applications", ..] => "settings".into(),
        [list, _id, rest @ ..] => format!("{list}/id/{}", rest.join("/")),
        others => others.join("/"),
    }
}

/// Whether one more fits into the last second. What was refused does not count.
fn in_limits(state: &mut State, key: &str, is_get: bool) -> bool {
    let most = if is_get { state.limits.0 } else { state.limits.1 };
    let window = state.windows.entry(key.to_owned()).or_default();
    window.retain(|at| state.now - *at < Duration::from_secs(1));
    let fits = window.len() < most;
    if fits {
        window.push_back(state.now);
    }
    fits
}

/// The parameters of a query, decoded; each once.
fn parameters(query: &str) -> Result<Vec<(String, String)>, ()> {
    let mut found: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(())?;
        if value.is_empty() || found.iter().any(|(known, _)| known == name) {
            return Err(());
        }
        found.push((decode(name), decode(value)));
    }
    Ok(found)
}

fn settings(state: &mut State, incoming: &Incoming, query: &[(String, String)]) -> Answer {
    let known = state.categories.clone();
    let mut all = false;
    for (name, value) in query {
        match (name.as_str(), value.as_str()) {
            ("display_all_webhook_categories", "true") if incoming.method == "GET" => all = true,
            ("display_all_webhook_categories", "false") if incoming.method == "GET" => all = false,
            _ => return invalid(&format!("{name} is not known")),
        }
    }
    if incoming.method == "PUT"
        && let Err(refused) = change(&mut state.webhook, &incoming.body, &known)
    {
        return refused;
    }
    let mut webhook = state.webhook.clone();
    if !state.tells_include_members {
        webhook.as_object_mut().unwrap().remove("include_members");
    }
    if state.spells_out_all && webhook["enabled_events"] == json!(["*"]) {
        webhook["enabled_events"] = json!(known);
    }
    if all {
        webhook["all_webhook_categories"] = json!(known);
    }
    Answer::json(200, &json!({ "webhook": webhook }))
}

/// All of it or nothing.
fn change(webhook: &mut Value, body: &[u8], known: &[String]) -> Result<(), Answer> {
    let body: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_no_object| mistyped("the body is no JSON object"))?;
    for (name, value) in &body {
        match (name.as_str(), value) {
            ("enabled" | "include_members", Value::Bool(_)) => {}
            ("url", Value::String(url)) => {
                if !url.starts_with("http://") && !url.starts_with("https://") {
                    return Err(invalid(&format!("{url} is no URL")));
                }
            }
            ("enabled_events", Value::Array(events)) => {
                let is_all = events[..] == [json!("*")];
                if let Some(event) =
                    events.iter().find(|event| !is_all && !known.iter().any(|known| *event == known.as_str()))
                {
                    return Err(invalid(&format!("{event} is no webhook category")));
                }
            }
            ("enabled" | "include_members" | "url" | "enabled_events", _) => {
                return Err(mistyped(&format!("{name} has a wrong type")));
            }
            _ => return Err(invalid(&format!("{name} is not known"))),
        }
    }
    for (name, value) in body {
        webhook[name] = value;
    }
    Ok(())
}
