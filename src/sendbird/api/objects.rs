//! What lists are made of: direct calls, rooms, participants.
//!
//! Only those members are read that somebody asks for; each is optional, and all are in `raw`. Times are Unix milliseconds.

use serde_json::Value;

use super::fields::Fields;

/// A direct call. Its members are documented, but for those that say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectCall {
    /// The call; opaque.
    pub call_id: Option<String>,
    /// `current` or `ended` (likely); an open set.
    pub state: Option<String>,
    /// Who took part. That they are in the call is documented, what one looks like is likely.
    pub participants: Vec<CallParticipant>,
    /// The user who dialed.
    pub started_by: Option<String>,
    /// When it was dialed.
    pub started_at_ms: Option<i64>,
    /// When it ended.
    pub ended_at_ms: Option<i64>,
    /// From the answer to the end, milliseconds.
    pub duration_ms: Option<i64>,
    /// The whole object as it came.
    pub raw: Value,
}

/// A user in a direct call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallParticipant {
    /// The user.
    pub user_id: Option<String>,
    /// `dc_caller` or `dc_callee`; an open set.
    pub role: Option<String>,
}

impl DirectCall {
    /// Reads an object; `None` if it is none.
    pub fn parse(value: &Value) -> Option<Self> {
        let fields = Fields::of(value)?;
        let participant = |value| {
            let fields = Fields(value);
            CallParticipant {
                user_id: fields.text("user_id").or_else(|| fields.user("user")),
                role: fields.text("role").or_else(|| fields.text("user_role")),
            }
        };
        Some(Self {
            call_id: fields.text("call_id"),
            state: fields.text("state"),
            participants: fields.objects("participants").map(participant).collect(),
            started_by: fields.user("started_by"),
            started_at_ms: fields.integer("started_at"),
            ended_at_ms: fields.integer("ended_at"),
            duration_ms: fields.integer("duration"),
            raw: value.clone(),
        })
    }

    /// Who called: the participant with that role (likely), or `caller_id` (guessed).
    pub fn caller_id(&self) -> Option<String> {
        self.with_role("dc_caller").or_else(|| Fields(&self.raw).text("caller_id"))
    }

    /// Who was called: the participant with that role (likely), or `callee_id` (guessed).
    pub fn callee_id(&self) -> Option<String> {
        self.with_role("dc_callee").or_else(|| Fields(&self.raw).text("callee_id"))
    }

    fn with_role(&self, role: &str) -> Option<String> {
        let of = |participant: &&CallParticipant| {
            participant.role.as_ref().is_some_and(|found| found.eq_ignore_ascii_case(role))
        };
        self.participants.iter().find(of)?.user_id.clone()
    }
}

/// A room. Its members are documented.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    /// The room; opaque.
    pub room_id: Option<String>,
    /// An open set, compare it ignoring case: `open`, `deleted`.
    pub state: Option<String>,
    /// When it was made.
    pub created_at_ms: Option<i64>,
    /// When it was changed last.
    pub updated_at_ms: Option<i64>,
    /// When it was deleted.
    pub deleted_at_ms: Option<i64>,
    /// The whole object as it came.
    pub raw: Value,
}

impl Room {
    /// Reads an object; `None` if it is none.
    pub fn parse(value: &Value) -> Option<Self> {
        let fields = Fields::of(value)?;
        Some(Self {
            room_id: fields.text("room_id"),
            state: fields.text("state"),
            created_at_ms: fields.integer("created_at"),
            updated_at_ms: fields.integer("updated_at"),
            deleted_at_ms: fields.integer("deleted_at"),
            raw: value.clone(),
        })
    }
}

/// One stay of one user in a room. Its members are documented.
#[derive(Clone, Debug, PartialEq)]
pub struct Participant {
    /// The stay; new at each entry.
    pub participant_id: Option<String>,
    /// An open set, compare it ignoring case: `entered`, `connected`, `exited`.
    pub state: Option<String>,
    /// When the user came in.
    pub entered_at_ms: Option<i64>,
    /// When the user left.
    pub exited_at_ms: Option<i64>,
    /// The whole object as it came.
    pub raw: Value,
}

impl Participant {
    /// Reads an object; `None` if it is none.
    pub fn parse(value: &Value) -> Option<Self> {
        let fields = Fields::of(value)?;
        Some(Self {
            participant_id: fields.text("participant_id"),
            state: fields.text("state"),
            entered_at_ms: fields.integer("entered_at"),
            exited_at_ms: fields.integer("exited_at").or_else(|| fields.integer("exit_at")),
            raw: value.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_object_is_one_of_which_nothing_is_known() {
        let empty = json!({});
        assert_eq!(DirectCall::parse(&empty).expect("a call").caller_id(), None);
        assert_eq!(Room::parse(&empty).expect("a room").room_id, None);
        assert_eq!(Participant::parse(&empty).expect("a participant").participant_id, None);
        for no_object in [json!(null), json!([]), json!("x"), json!(1)] {
            assert_eq!(DirectCall::parse(&no_object), None);
            assert_eq!(Room::parse(&no_object), None);
            assert_eq!(Participant::parse(&no_object), None);
        }
    }

    #[test]
    fn a_call_says_who_called_whom() {
        let call = json!({
            "call_id": "c", "started_at": 5, "duration": 124_324, "new": {},
            "participants": [
                { "user_id": "bob", "role": "dc_callee" }, { "user": { "user_id": "alice" }, "user_role": "DC_CALLER" },
            ],
        });
        let call = DirectCall::parse(&call).expect("a call");
        assert_eq!((call.caller_id().as_deref(), call.callee_id().as_deref()), (Some("alice"), Some("bob")));
        assert_eq!((call.started_at_ms, call.duration_ms), (Some(5), Some(124_324)));
        let flat = json!({ "call_id": "c", "caller_id": "alice", "callee_id": "bob" });
        let flat = DirectCall::parse(&flat).expect("a call");
        assert_eq!((flat.caller_id().as_deref(), flat.callee_id().as_deref()), (Some("alice"), Some("bob")));
    }

    #[test]
    fn a_participant_leaves_under_either_name() {
        for name in ["exited_at", "exit_at"] {
            let found = Participant::parse(&json!({ name: 7, "entered_at": 4 })).expect("a participant");
            assert_eq!((found.entered_at_ms, found.exited_at_ms), (Some(4), Some(7)));
        }
    }
}
