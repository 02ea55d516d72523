//! `data`, version 1: what an event says, and where in a delivery each part of it is looked for.
//!
//! The types are the published schema: within version 1 a field is never renamed, retyped or removed, and
//! what is not known is `null`, never a guess. The order of the fields is the order in which they are
//! written. Where a field may stand in several places, the order in which they are tried is part of the
//! promise too.

use std::borrow::Cow;
use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::category::Category;
use super::delivery::{Object, string};

type Text<'a> = Option<Cow<'a, str>>;

/// What an event says, version 1.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Data<'a> {
    /// The category as Sendbird wrote it; an open set. Compare it ignoring case.
    #[schemars(extend("minLength" = 1, "examples" = Category::ALL.map(Category::label)))]
    pub category: &'a str,
    /// The Sendbird application; compare it ignoring case. `null` if the delivery doesn't say.
    pub application_id: Text<'a>,
    /// When it happened, Unix milliseconds; `null` if the delivery doesn't say, or says something impossible.
    pub occurred_at_ms: Option<i64>,
    /// The call; present on every known `direct_call:*`, absent on every known `room:*`. On a category that is not
    /// known yet it is present if the delivery carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Call<'a>")]
    pub call: Option<Call<'a>>,
    /// The room; present on every known `room:*`, absent on every known `direct_call:*`. On a category that is not
    /// known yet it is present if the delivery carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Room<'a>")]
    pub room: Option<Room<'a>>,
    /// The participant whom it is about; present with `room`, `null` if it is about none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Participant<'a>>")]
    pub participant: Option<Option<Participant<'a>>>,
    /// The invitation that it is about; present with `room`, `null` if it is about none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Invitation<'a>>")]
    pub invitation: Option<Option<Invitation<'a>>>,
    /// The delivery as received, secrets redacted; `null` if the bridge is configured so.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub raw: Option<&'a RawValue>,
}

/// A call between two users.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Call<'a> {
    /// The call; opaque.
    pub call_id: Text<'a>,
    /// Who calls.
    pub caller_id: Text<'a>,
    /// Who is called.
    pub callee_id: Text<'a>,
    /// Whether it is a video call.
    pub is_video_call: Option<bool>,
    /// How it ended, an open set; compare it ignoring case.
    #[schemars(extend("examples" = ["completed", "canceled", "declined", "no_answer", "connection_lost", "timed_out"]))]
    pub end_result: Text<'a>,
    /// The user who ended it.
    pub ended_by: Text<'a>,
    /// When it started, Unix milliseconds.
    pub started_at_ms: Option<i64>,
    /// When it ended, Unix milliseconds.
    pub ended_at_ms: Option<i64>,
    /// How long it took, milliseconds.
    pub duration_ms: Option<i64>,
    /// What the application attached to it.
    pub custom_items: Option<Items<'a>>,
}

/// A room for several users.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Room<'a> {
    /// The room; opaque.
    pub room_id: Text<'a>,
    /// An open set; compare it ignoring case.
    #[schemars(extend("examples" = ["small_room_for_video", "large_room_for_audio_only"]))]
    pub room_type: Text<'a>,
    /// An open set, as Sendbird wrote it; compare it ignoring case.
    #[schemars(extend("examples" = ["open", "deleted"]))]
    pub state: Text<'a>,
    /// When it was made, Unix milliseconds.
    pub created_at_ms: Option<i64>,
    /// The user who made it.
    pub created_by: Text<'a>,
    /// When it was deleted, Unix milliseconds.
    pub deleted_at_ms: Option<i64>,
    /// The user who deleted it; `null` if nobody did yet, or the API did.
    pub deleted_by: Text<'a>,
    /// What the application attached to it.
    pub custom_items: Option<Items<'a>>,
}

/// One stay of one user in a room.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Participant<'a> {
    /// The stay; new at each entry of the same user.
    pub participant_id: Text<'a>,
    /// The user.
    pub user_id: Text<'a>,
    /// The user's device or browser.
    pub client_id: Text<'a>,
    /// An open set, as Sendbird wrote it; compare it ignoring case.
    #[schemars(extend("examples" = ["entered", "connected", "exited"]))]
    pub state: Text<'a>,
    /// When the user came in, Unix milliseconds.
    pub entered_at_ms: Option<i64>,
    /// When media flowed first, Unix milliseconds.
    pub connected_at_ms: Option<i64>,
    /// When the user left, Unix milliseconds.
    pub exited_at_ms: Option<i64>,
    /// How long the stay was, **seconds**.
    pub duration_s: Option<i64>,
    /// Whether the microphone is on.
    pub is_audio_on: Option<bool>,
    /// Whether the camera is on.
    pub is_video_on: Option<bool>,
}

/// Who asks whom into a room. It has no id of its own.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Invitation<'a> {
    /// Who invites.
    pub inviter_id: Text<'a>,
    /// Who is invited.
    pub invitee_id: Text<'a>,
}

/// What an application attached to a call or a room: texts by texts, in the order in which they came.
/// Documented: at most ten.
#[derive(Debug)]
pub struct Items<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl JsonSchema for Items<'_> {
    fn schema_name() -> Cow<'static, str> {
        "Items".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "description": "What the application attached: texts by texts. What came as anything but a text is its JSON.",
            "additionalProperties": { "type": "string" }
        })
    }
}

/// The objects of a delivery that data is read from, each parsed once.
pub(super) struct Source<'a> {
    pub(super) top: Object<'a>,
    call: Option<Object<'a>>,
    room: Option<Object<'a>>,
    participant: Option<Object<'a>>,
    invitation: Option<Object<'a>>,
    room_invitation: Option<Object<'a>>,
    payload: Option<Object<'a>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(top: Object<'a>) -> Self {
        Self {
            call: top.object("direct_call"),
            room: top.object("room"),
            participant: top.object("participant"),
            invitation: top.object("invitation"),
            room_invitation: top.object("room_invitation"),
            payload: top.object("sendbird_call").and_then(|command| command.object("payload")),
            top,
        }
    }

    /// The call. Other than on the known categories of direct calls, only if the delivery carries one.
    pub(super) fn call(&self, category: Category) -> Option<Call<'a>> {
        let (call, payload) = (self.call.as_ref(), self.payload.as_ref());
        let call_id = call.and_then(|it| it.text("call_id")).or_else(|| payload?.text("call_id"));
        let carried = call.is_some() || call_id.is_some();
        if !category.is_call() && (category.is_known() || !carried) {
            return None;
        }
        Some(Call {
            call_id,
            caller_id: call.and_then(|it| it.text("caller_id")).or_else(|| payload?.object("caller")?.text("user_id")),
            callee_id: call.and_then(|it| it.text("callee_id")).or_else(|| payload?.object("callee")?.text("user_id")),
            is_video_call: [call, payload].into_iter().flatten().find_map(|it| it.boolean("is_video_call")),
            end_result: self.end_result(),
            ended_by: call.and_then(|it| it.user("ended_by")),
            started_at_ms: call.and_then(|it| it.integer("started_at")),
            ended_at_ms: call.and_then(|it| it.integer("ended_at")),
            duration_ms: call.and_then(|it| it.integer("duration")),
            custom_items: [call, payload].into_iter().flatten().find_map(items),
        })
    }

    /// The top-level `result` is documented and to be deprecated; the other places are guessed.
    fn end_result(&self) -> Text<'a> {
        let (call, top) = (self.call.as_ref(), &self.top);
        let ended = || self.payload.as_ref()?.object("ended_call");
        call.and_then(|it| it.text("end_result"))
            .or_else(|| call?.text("end_result_ex"))
            .or_else(|| top.text("end_result"))
            .or_else(|| top.text("result"))
            .or_else(|| call?.text("result"))
            .or_else(|| {
                let ended = ended()?;
                ended.text("end_result_ex").or_else(|| ended.text("end_result"))
            })
    }

    /// The room. Other than on the known categories of rooms, only if the delivery carries one.
    pub(super) fn room(&self, category: Category) -> Option<Room<'a>> {
        if category.is_call() {
            return None;
        }
        let room = self.room.as_ref();
        let room_id = self.room_id();
        if !category.is_known() && room.is_none() && room_id.is_none() {
            return None;
        }
        Some(Room {
            room_id,
            room_type: room.and_then(|it| it.text("room_type")),
            state: room.and_then(|it| it.text("state")),
            created_at_ms: room.and_then(|it| it.integer("created_at")),
            created_by: room.and_then(|it| it.user("created_by")),
            deleted_at_ms: room.and_then(|it| it.integer("deleted_at")),
            deleted_by: room.and_then(|it| it.user("deleted_by")),
            custom_items: room.and_then(items),
        })
    }

    /// Guessed to be in the first place; likely to be in one of them.
    fn room_id(&self) -> Text<'a> {
        let invitation = self.invitation.as_ref();
        let payload = self.payload.as_ref();
        self.room
            .as_ref()
            .and_then(|it| it.text("room_id"))
            .or_else(|| self.top.text("room_id"))
            .or_else(|| self.participant.as_ref()?.text("room_id"))
            .or_else(|| invitation?.object("room")?.text("room_id"))
            .or_else(|| invitation?.text("room_id"))
            .or_else(|| payload?.object("room")?.text("room_id"))
            .or_else(|| payload?.text("room_id"))
    }

    /// The participant, nested (likely) or flat: its members beside `category`, or among the room's
    /// (guessed). A flat one counts if it has a participant id, or if the category is about participants.
    pub(super) fn participant(&self, category: Category) -> Option<Participant<'a>> {
        let flat = || [(Some(&self.top), true), (self.room.as_ref(), false)].into_iter();
        let with = |names: &[&str]| {
            flat().find(|(it, _)| it.is_some_and(|it| names.iter().any(|name| it.raw(name).is_some())))
        };
        let (holder, own_state) = match &self.participant {
            Some(nested) => (nested, true),
            None => {
                let named = with(&["participant_id"]);
                let (holder, own_state) =
                    named.or_else(|| with(&["user", "user_id"]).filter(|_| category.is_participant()))?;
                (holder?, own_state)
            }
        };
        let user = |it: &Object<'a>| it.user("user").or_else(|| it.text("user_id"));
        let elsewhere = |read: &dyn Fn(&Object<'a>) -> Text<'a>| flat().find_map(|(it, _)| read(it?));
        Some(Participant {
            participant_id: holder.text("participant_id").or_else(|| elsewhere(&|it| it.text("participant_id"))),
            user_id: user(holder).or_else(|| elsewhere(&user)),
            client_id: holder.text("client_id"),
            // A room's own state is not its participant's.
            state: if own_state { holder.text("state") } else { None },
            entered_at_ms: holder.integer("entered_at"),
            connected_at_ms: holder.integer("connected_at"),
            exited_at_ms: holder.integer("exited_at").or_else(|| holder.integer("exit_at")),
            duration_s: holder.integer("duration"),
            is_audio_on: holder.boolean("is_audio_on"),
            is_video_on: holder.boolean("is_video_on"),
        })
    }

    /// The invitation. Other than on the known categories of invitations, only if the delivery names
    /// somebody of it. Where its users stand is likely for the first place, guessed for the others.
    pub(super) fn invitation(&self, category: Category) -> Option<Invitation<'a>> {
        let find = |user: &str, id: &str| {
            [Some(&self.top), self.invitation.as_ref(), self.room_invitation.as_ref()]
                .into_iter()
                .flatten()
                .find_map(|it| it.user(user).or_else(|| it.text(id)))
                .or_else(|| self.payload.as_ref()?.user(user))
        };
        let (inviter_id, invitee_id) = (find("inviter", "inviter_id"), find("invitee", "invitee_id"));
        let carried = inviter_id.is_some() || invitee_id.is_some();
        (category.is_invitation() || carried).then_some(Invitation { inviter_id, invitee_id })
    }
}

/// An object of texts by texts; documented. Older pages show an array: an empty one means the same as an
/// empty object, one with elements is not understood. A value that is not a text is taken as its JSON.
fn items<'a>(of: &Object<'a>) -> Option<Items<'a>> {
    let value = of.present("custom_items")?;
    match value.get() {
        "{}" | "[]" => return Some(Items(Vec::new())),
        "\"\"" => return None,
        _ => {}
    }
    let Some(object) = of.open(value) else { return of.odd() };
    let mut seen = HashSet::new();
    let mut items = Vec::new();
    // From the end: of a key that comes twice the last counts.
    for (key, value) in object.members().rev() {
        if seen.insert(key) {
            let text = if value.get() == "\"\"" { Some(Cow::Borrowed("")) } else { string(value) };
            items.push((key.clone(), text.unwrap_or(Cow::Borrowed(value.get()))));
        }
    }
    items.reverse();
    Some(Items(items))
}
