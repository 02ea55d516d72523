//! The text of a delivery's body.
//!
//! Written by hand rather than through serde, because Sendbird is documented to escape `/` and whatever is
//! not ASCII, at times, and because a load test must not be held up by its sender.

use std::fmt::Write;

use fastrand::Rng;

use super::{OpenCall, Person, Step, User};
use crate::sendbird::category::Category;

/// The body that tells of this step.
pub(super) fn write(
    live: &OpenCall,
    rng: &mut Rng,
    Step(category, who): Step,
    at_ms: i64,
    application_id: &str,
) -> String {
    let mut body = Body { out: String::with_capacity(2048), escape: rng.u8(..4) == 0 };
    body.plain("{\"category\":\"");
    body.plain(if category.is_known() { category.label() } else { "room:recording_start" });
    body.number("\",\"occurred_at\":", at_ms);
    body.text(",\"application_id\":", application_id);
    if category.is_call() {
        call(&mut body, live, rng, Step(category, who), at_ms);
    } else {
        room(&mut body, live, Step(category, who), at_ms);
    }
    body.plain("}");
    body.out
}

fn call(body: &mut Body, live: &OpenCall, rng: &mut Rng, Step(category, who): Step, at_ms: i64) {
    let [caller, callee] = &live.people[..] else { return };
    body.text(",\"direct_call\":{\"call_id\":", &live.id);
    body.text(",\"caller_id\":", caller.user.id);
    body.text(",\"callee_id\":", callee.user.id);
    body.number(",\"custom_items\":{\"ticket\":\"", live.ticket);
    body.plain("\"}");
    match category {
        Category::DirectCallDial => {
            body.plain("}");
            signalling(body, live, rng, caller, callee, at_ms);
        }
        Category::DirectCallEnd => {
            body.text(",\"end_result\":", live.end_result);
            let ended_by = match live.end_result {
                "declined" => Some(callee),
                "canceled" => Some(caller),
                "completed" => live.people.get(who),
                _ => None,
            };
            if let Some(person) = ended_by {
                body.text(",\"ended_by\":", person.user.id);
            }
            let ended_ms = at_ms.saturating_sub(9);
            body.number(",\"ended_at\":", ended_ms);
            body.number(
                ",\"duration\":",
                live.accepted_ms.map_or(0, |from_ms| ended_ms.saturating_sub(from_ms).max(0)),
            );
            body.text("},\"result\":", live.end_result);
        }
        _ => body.plain("}"),
    }
}

/// The command that the caller's device sent, with the secrets that come along.
fn signalling(body: &mut Body, live: &OpenCall, rng: &mut Rng, caller: &Person, callee: &Person, at_ms: i64) {
    body.text(",\"sendbird_call\":{\"version\":1,\"message_id\":", &super::uuid(rng));
    body.plain(",\"cmd\":\"CALL\",\"type\":\"dial\",\"call_type\":\"direct_call\",\"sequence_number\":0");
    body.plain(",\"delivery_info\":{\"type\":\"webhook\"}");
    body.text(",\"payload\":{\"call_id\":", &live.id);
    body.flag(",\"is_video_call\":", live.is_video);
    body.user(",\"caller\":", caller.user, Some("dc_caller"));
    body.user(",\"callee\":", callee.user, Some("dc_callee"));
    body.flag(",\"constraints\":{\"audio\":true,\"video\":", live.is_video);
    body.number("},\"custom_items\":{\"ticket\":\"", live.ticket);
    body.number(
        "\"},\"capabilities\":[\"turn_changed\"],\"turn_credential\":{\"username\":\"EXAMPLE:",
        at_ms / 1000 + 86_400,
    );
    body.number("\",\"password\":\"EXAMPLE-", rng.u64(..));
    body.text("\",\"turn_urls\":[", "turn:turn.example.invalid:5349?transport=tcp/tls");
    body.plain("],\"transport_policy\":\"all\"}");
    body.number(",\"sbcall_short_lived_token\":\"EXAMPLE.", rng.u64(..));
    body.plain("\"}}");
}

fn room(body: &mut Body, live: &OpenCall, Step(category, who): Step, at_ms: i64) {
    let (Some(host), Some(person)) = (live.people.first(), live.people.get(who)) else { return };
    let just_before_ms = at_ms.saturating_sub(10);
    let deleted = category == Category::RoomDelete;
    body.text(",\"room\":{\"room_id\":", &live.id);
    body.plain(",\"room_type\":\"");
    body.plain(if live.is_large { "large_room_for_audio_only" } else { "small_room_for_video" });
    body.plain(if deleted { "\",\"state\":\"deleted\"" } else { "\",\"state\":\"open\"" });
    body.number(",\"created_at\":", live.born_ms.saturating_sub(10));
    body.number(",\"updated_at\":", if deleted { just_before_ms } else { live.born_ms.saturating_sub(10) });
    body.text(",\"created_by\":", host.user.id);
    if deleted {
        body.text(",\"deleted_by\":", host.user.id);
        body.number(",\"deleted_at\":", just_before_ms);
    } else {
        body.plain(",\"deleted_by\":\"\"");
    }
    if matches!(category, Category::RoomCreate | Category::RoomDelete) {
        body.plain(",\"current_participants\":[]");
    }
    body.plain(",\"custom_items\":{}}");
    if category.is_participant() {
        participant(body, live, person, category, just_before_ms);
    }
    if category.is_invitation() {
        body.user(",\"inviter\":", host.user, None);
        body.user(",\"invitee\":", person.user, None);
    }
}

fn participant(body: &mut Body, live: &OpenCall, person: &Person, category: Category, just_before_ms: i64) {
    let entered_ms = person.entered_ms.saturating_sub(10);
    body.text(",\"participant\":{\"participant_id\":", &person.participant_id);
    body.text(",\"room_id\":", &live.id);
    body.text(",\"client_id\":", &person.client_id);
    if category == Category::RoomParticipantEnter {
        body.number(",\"state\":\"entered\",\"entered_at\":", entered_ms);
        body.number(",\"connected_at\":null,\"updated_at\":", entered_ms);
        body.plain(",\"exited_at\":null,\"duration\":null");
    } else {
        body.number(",\"state\":\"exited\",\"entered_at\":", entered_ms);
        body.number(",\"connected_at\":", entered_ms.saturating_add(1_210).min(just_before_ms));
        body.number(",\"updated_at\":", just_before_ms);
        body.number(",\"exited_at\":", just_before_ms);
        body.number(",\"duration\":", just_before_ms.saturating_sub(entered_ms) / 1_000);
    }
    body.user(",\"user\":", person.user, None);
    body.flag(",\"is_audio_on\":true,\"is_video_on\":", live.is_video && !live.is_large);
    body.plain("}");
    if category == Category::RoomParticipantDisconnect {
        body.plain(",\"reason\":\"sibling_kicked\"");
    }
}

struct Body {
    out: String,
    /// Whether to escape what needn't be.
    escape: bool,
}

impl Body {
    fn plain(&mut self, json: &str) {
        self.out.push_str(json);
    }

    fn number(&mut self, before: &str, number: impl std::fmt::Display) {
        // Writing to a String can't fail.
        let _infallible = write!(self.out, "{before}{number}");
    }

    fn flag(&mut self, before: &str, flag: bool) {
        self.plain(before);
        self.plain(if flag { "true" } else { "false" });
    }

    fn text(&mut self, before: &str, text: &str) {
        self.plain(before);
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

    /// In direct calls, users have a role.
    fn user(&mut self, before: &str, user: &User, role: Option<&str>) {
        self.plain(before);
        self.text("{\"user_id\":", user.id);
        self.text(",\"nickname\":", user.nickname);
        self.text(",\"profile_url\":", "https://img.example.invalid/p.png");
        self.plain(",\"metadata\":{},\"is_active\":true");
        if let Some(role) = role {
            self.text(",\"role\":", role);
        }
        self.plain("}");
    }
}
