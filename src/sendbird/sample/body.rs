//! The text of a delivery's body.
//!
//! What Sendbird writes stands in a template for each kind of delivery; `$name` is filled in here. The text is not written
//! through serde, because Sendbird is documented to escape `/` and whatever is not ASCII, at times, and because a load test
//! must not be held up by its sender.

use std::fmt::{Display, Write};

use fastrand::Rng;

use super::{OpenCall, Person, Step};
use crate::sendbird::category::Category;

/// The body that tells of this step.
pub(super) fn write(live: &OpenCall, rng: &mut Rng, step: Step, at_ms: i64, application_id: &str) -> String {
    let template = match step.0 {
        Category::DirectCallDial => include_str!("dial.json"),
        Category::DirectCallAccept => include_str!("accept.json"),
        Category::DirectCallEnd => include_str!("end.json"),
        Category::RoomCreate => include_str!("create.json"),
        Category::RoomDelete => include_str!("delete.json"),
        Category::RoomParticipantEnter => include_str!("enter.json"),
        Category::RoomParticipantExit | Category::RoomParticipantDisconnect => include_str!("leave.json"),
        Category::Other => include_str!("unknown.json"),
        _ => include_str!("invitation.json"),
    };
    let escape = rng.u8(..4) == 0;
    let mut body = Body { out: String::with_capacity(2048), escape, live, rng, step, at_ms, application_id };
    let mut pieces = template.split('$');
    body.literal(pieces.next().unwrap_or_default());
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(piece.len());
        let (name, json) = piece.split_at(end);
        body.value(name);
        body.literal(json);
    }
    body.out
}

struct Body<'a> {
    out: String,
    /// Whether to escape what needn't be.
    escape: bool,
    live: &'a OpenCall,
    rng: &'a mut Rng,
    step: Step,
    at_ms: i64,
    application_id: &'a str,
}

impl<'a> Body<'a> {
    /// A part of a template, without its line breaks.
    fn literal(&mut self, json: &str) {
        for line in json.lines() {
            if self.escape {
                self.out.push_str(&line.replace('/', "\\/"));
            } else {
                self.out.push_str(line);
            }
        }
    }

    /// What a template calls by this name.
    fn value(&mut self, name: &str) {
        let (live, at_ms) = (self.live, self.at_ms);
        let just_before_ms = at_ms.saturating_sub(10);
        match name {
            "category" if self.step.0 == Category::Other => self.text("room:recording_start"),
            "category" => self.text(self.step.0.label()),
            "at" => self.plain(at_ms),
            "application" => self.text(self.application_id),
            "id" => self.text(&live.id),
            "caller" | "host" => self.text(self.person(0).user.id),
            "caller_nickname" | "host_nickname" => self.text(self.person(0).user.nickname),
            "callee" => self.text(self.person(1).user.id),
            "callee_nickname" => self.text(self.person(1).user.nickname),
            "user" => self.text(self.person(self.step.1).user.id),
            "user_nickname" => self.text(self.person(self.step.1).user.nickname),
            "ticket" => self.plain(live.ticket),
            "message" => {
                let id = super::uuid(self.rng);
                self.text(&id);
            }
            "random" => {
                let number = self.rng.u64(..);
                self.plain(number);
            }
            "expires_at" => self.plain(at_ms / 1000 + 86_400),
            "is_video" => self.plain(live.is_video),
            "is_camera_on" => self.plain(live.is_video && !live.is_large),
            "end_result" => self.text(live.end_result),
            "and_ended_by" => self.ended_by(),
            "ended_at" => self.plain(at_ms.saturating_sub(9)),
            "duration" => {
                let since = |from_ms| at_ms.saturating_sub(9).saturating_sub(from_ms).max(0);
                self.plain(live.accepted_ms.map_or(0, since));
            }
            "room_type" if live.is_large => self.text("large_room_for_audio_only"),
            "room_type" => self.text("small_room_for_video"),
            "made_at" => self.plain(live.born_ms.saturating_sub(10)),
            "just_before" => self.plain(just_before_ms),
            "participant_id" => self.text(&self.person(self.step.1).participant_id),
            "client_id" => self.text(&self.person(self.step.1).client_id),
            "entered_at" => self.plain(self.entered_ms()),
            "connected_at" => self.plain(self.entered_ms().saturating_add(1_210).min(just_before_ms)),
            "stayed_s" => self.plain(just_before_ms.saturating_sub(self.entered_ms()) / 1_000),
            "and_reason" if self.step.0 == Category::RoomParticipantDisconnect => {
                self.plain(",\"reason\":\"sibling_kicked\"");
            }
            _ => {}
        }
    }

    fn person(&self, number: usize) -> &'a Person {
        // Each call has two people and each room six, and a step names one of them.
        &self.live.people[number]
    }

    fn entered_ms(&self) -> i64 {
        self.person(self.step.1).entered_ms.saturating_sub(10)
    }

    /// Nobody in particular ends a call that is not answered or breaks off.
    fn ended_by(&mut self) {
        let person = match self.live.end_result {
            "declined" => 1,
            "canceled" => 0,
            "completed" => self.step.1,
            _ => return,
        };
        self.plain(",\"ended_by\":");
        self.text(self.person(person).user.id);
    }

    fn plain(&mut self, json: impl Display) {
        // Writing to a String can't fail.
        let _infallible = write!(self.out, "{json}");
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.out.extend(['\\', c]),
                '/' if self.escape => self.out.push_str("\\/"),
                '\0'..='\x1f' => self.units(c),
                _ if self.escape && !c.is_ascii() => self.units(c),
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn units(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _infallible = write!(self.out, "\\u{unit:04x}");
        }
    }
}
