//! The lists: filters, pages, opaque cursors.

use serde_json::{Value, json};

use super::State;
use super::answers::{invalid, mistyped, not_found};
use super::wire::Answer;

type Parameters = [(String, String)];

const END_RESULTS: [&str; 7] =
    ["completed", "canceled", "declined", "connection_lost", "no_answer", "timed_out", "unknown"];

const ROOM_TYPES: [&str; 4] =
    ["small_room_for_video", "large_room_for_audio_only", "small_room_for_audio_only", "large_room_for_video"];

fn find<'a>(query: &'a Parameters, name: &str) -> Option<&'a str> {
    query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn integer(query: &Parameters, name: &str) -> Result<Option<i64>, Answer> {
    let parse = |text: &str| text.parse().map_err(|_no_number| mistyped(&format!("{name} is no integer")));
    find(query, name).map(parse).transpose()
}

/// A list of texts between commas, each of which must be known if any are.
fn words(query: &Parameters, name: &str, known: &[&str]) -> Result<Option<Vec<String>>, Answer> {
    let Some(text) = find(query, name) else { return Ok(None) };
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    match words.iter().find(|word| !known.is_empty() && !known.contains(&word.as_str())) {
        Some(word) => Err(invalid(&format!("{word} is no {name}"))),
        None => Ok(Some(words)),
    }
}

fn only(query: &Parameters, known: &[&str]) -> Result<(), Answer> {
    match query.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => Err(invalid(&format!("{name} is not known"))),
        None => Ok(()),
    }
}

fn is_any(value: &Value, wanted: Option<&Vec<String>>) -> bool {
    wanted.is_none_or(|wanted| value.as_str().is_some_and(|text| wanted.iter().any(|word| word == text)))
}

fn is_between(value: &Value, from: Option<i64>, to: Option<i64>) -> bool {
    let number = value.as_i64();
    from.is_none_or(|from| number.is_some_and(|number| number >= from))
        && to.is_none_or(|to| number.is_some_and(|number| number <= to))
}

fn answered(answer: Result<Answer, Answer>) -> Answer {
    answer.unwrap_or_else(|refused| refused)
}

/// `GET /direct_calls`. What `search_scope_from_call_ts` may be is not on any public page; `before` and `after` are ours.
pub(super) fn calls(state: &mut State, query: &Parameters) -> Answer {
    answered((|| {
        only(
            query,
            &[
                "limit",
                "next",
                "call_ts",
                "search_scope_from_call_ts",
                "end_result",
                "duration_range_min",
                "duration_range_max",
            ],
        )?;
        let ts = integer(query, "call_ts")?;
        let (from, to) = match (find(query, "search_scope_from_call_ts"), ts) {
            (None, _) => (None, None),
            (Some("before"), Some(ts)) => (None, Some(ts)),
            (Some("after"), Some(ts)) => (Some(ts), None),
            _ => return Err(invalid("search_scope_from_call_ts is before or after a call_ts")),
        };
        let results = words(query, "end_result", &END_RESULTS)?;
        let (min, max) = (integer(query, "duration_range_min")?, integer(query, "duration_range_max")?);
        let fits = |call: &&Value| {
            is_between(&call["started_at"], from, to)
                && is_any(&call["end_result"], results.as_ref())
                && is_between(&call["duration"], min, max)
        };
        let found: Vec<Value> = state.calls.iter().filter(fits).cloned().collect();
        page(state, query, ("calls", "started_at"), "", found)
    })())
}

/// `GET /rooms`.
pub(super) fn rooms(state: &mut State, query: &Parameters) -> Answer {
    answered((|| {
        only(
            query,
            &[
                "limit",
                "next",
                "prev",
                "type",
                "state",
                "room_ids",
                "created_by_user_ids",
                "created_at_start_date",
                "created_at_end_date",
            ],
        )?;
        let kinds = words(query, "type", &ROOM_TYPES)?;
        let states = words(query, "state", &["open", "deleted"])?;
        let ids = words(query, "room_ids", &[])?;
        let users = words(query, "created_by_user_ids", &[])?;
        let (from, to) = (integer(query, "created_at_start_date")?, integer(query, "created_at_end_date")?);
        let fits = |room: &&Value| {
            is_any(&room["room_type"], kinds.as_ref())
                && is_any(&room["state"], states.as_ref())
                && is_any(&room["room_id"], ids.as_ref())
                && is_any(&room["created_by"], users.as_ref())
                && is_between(&room["created_at"], from, to)
        };
        let found: Vec<Value> = state.rooms.iter().filter(fits).cloned().collect();
        page(state, query, ("rooms", "created_at"), "", found)
    })())
}

/// `GET /rooms/{id}/participants`.
pub(super) fn participants(state: &mut State, room: &str, query: &Parameters) -> Answer {
    answered((|| {
        only(query, &["limit", "next", "prev"])?;
        let Some(found) = state.participants.get(room).cloned() else { return Err(not_found("room")) };
        page(state, query, ("participants", "entered_at"), room, found)
    })())
}

/// A page of a list, by its name and the time that it is sorted by, of one room or of all.
fn page(
    state: &mut State,
    query: &Parameters,
    (name, order): (&str, &str),
    room: &str,
    mut found: Vec<Value>,
) -> Result<Answer, Answer> {
    let limit = match integer(query, "limit")? {
        None => 10,
        Some(limit @ 1..=100) => limit as usize,
        Some(_) => return Err(invalid("limit is from 1 to 100")),
    };
    found.sort_by_key(|value| value[order].as_i64());
    if state.newest_first {
        found.reverse();
    }
    // A cursor belongs to its list and filters.
    let filters: Vec<_> =
        query.iter().filter(|(name, _)| !matches!(name.as_str(), "next" | "prev" | "limit")).collect();
    let list = format!("{name} {room} {filters:?}");
    let start = match (find(query, "next"), find(query, "prev")) {
        (None, None) => 0,
        (Some(cursor), None) | (None, Some(cursor)) => match state.cursors.get(cursor) {
            Some((of, at)) if *of == list => *at,
            _ => return Err(invalid("the cursor is not of this list")),
        },
        _ => return Err(invalid("next and prev exclude each other")),
    };
    let end = (start + limit).min(found.len());
    let mut cursor = |at: usize| {
        let cursor = format!("{:016x}~~", fastrand::u64(..));
        state.cursors.insert(cursor.clone(), (list.clone(), at));
        cursor
    };
    let next = (end < found.len()).then(|| cursor(end));
    let prev = (start > 0).then(|| cursor(start.saturating_sub(limit)));
    let items = found.get(start..end).unwrap_or_default();
    Ok(Answer::json(200, &json!({ name: items, "next": next, "prev": prev })))
}
