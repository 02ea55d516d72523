//! What the Calls Platform API knows of calls and rooms, as the events that should have come.
//!
//! Owns what a *fact* is: that a call was dialed, that a participant left; stated by one event, whoever made it. Facts
//! are read from the API's objects ([`of_call`], [`of_room`], [`of_participant`]) and from stored events
//! ([`fact_of`]), and are the same in both, while ids need not be: the times in the API and in a delivery differ by
//! some milliseconds. [`event`] makes the event of a fact, by way of a delivery as Sendbird would have written it, so
//! that all that reads deliveries reads it; [`seen_facts::SeenFacts`] says which facts a journal does not tell of.
//!
//! Promises: an event says nothing that was not so when it happened. What the API says of an object is how it is now,
//! so only members that do not change are in an earlier event. The whole object is in `raw`, as `made_from`.

pub mod seen_facts;
pub mod settings;
mod synthesize;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use self::synthesize::{Facts, event, of_call, of_participant, of_room};
use super::category::Category;
use crate::domain::identity::EventId;

/// The id of a fact.
pub type FactId = [u8; 16];

/// What a fact says, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FactKind {
    /// A call was dialed.
    Dial,
    /// It was answered.
    Accept,
    /// It ended.
    End,
    /// A room was made.
    Create,
    /// A participant came.
    Enter,
    /// A participant left, or the connection did: the API does not tell which.
    Leave,
    /// A room was deleted.
    Delete,
}

impl FactKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Dial, Self::Accept, Self::End, Self::Create, Self::Enter, Self::Leave, Self::Delete];

    /// What an event of this category tells of; `None` if the API knows nothing of such.
    pub fn by(category: Category) -> Option<Self> {
        match category {
            Category::DirectCallDial => Some(Self::Dial),
            Category::DirectCallAccept => Some(Self::Accept),
            Category::DirectCallEnd => Some(Self::End),
            Category::RoomCreate => Some(Self::Create),
            Category::RoomParticipantEnter => Some(Self::Enter),
            Category::RoomParticipantExit | Category::RoomParticipantDisconnect => Some(Self::Leave),
            Category::RoomDelete => Some(Self::Delete),
            Category::RoomInvitationSend
            | Category::RoomInvitationAccept
            | Category::RoomInvitationCancel
            | Category::RoomInvitationDecline
            | Category::RoomInvitationNoAnswer
            | Category::Other => None,
        }
    }

    /// The category of the event that is made of it.
    pub fn category(self) -> Category {
        match self {
            Self::Dial => Category::DirectCallDial,
            Self::Accept => Category::DirectCallAccept,
            Self::End => Category::DirectCallEnd,
            Self::Create => Category::RoomCreate,
            Self::Enter => Category::RoomParticipantEnter,
            Self::Leave => Category::RoomParticipantExit,
            Self::Delete => Category::RoomDelete,
        }
    }

    /// Part of the id of a fact, so it can't change.
    fn label(self) -> &'static str {
        match self {
            Self::Dial => "dial",
            Self::Accept => "accept",
            Self::End => "end",
            Self::Create => "create",
            Self::Enter => "enter",
            Self::Leave => "leave",
            Self::Delete => "delete",
        }
    }
}

/// A fact of the API's.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// What it says.
    pub kind: FactKind,
    /// When it happened, Unix milliseconds.
    pub at_ms: i64,
    /// The call or the room.
    pub key: String,
    /// The stay, of a participant's.
    pub participant_id: Option<String>,
    /// The delivery that tells of it.
    delivery: String,
}

impl Fact {
    /// Its id in `application`, then those of what a stored event may tell of instead: one that does not say of which
    /// participant, or of which call or room, may be this.
    pub fn ids(&self, application: &str) -> Vec<FactId> {
        let id = |key, participant| fact_id(application, self.kind, key, participant);
        let exact = id(&self.key, self.participant_id.as_deref());
        let of_nobody = self.participant_id.is_some().then(|| id(&self.key, None));
        [Some(exact), of_nobody, Some(id("", None))].into_iter().flatten().collect()
    }
}

fn fact_id(application: &str, kind: FactKind, key: &str, participant: Option<&str>) -> FactId {
    let application = application.to_ascii_uppercase();
    let parts = ["fact", &application, kind.label(), key, participant.unwrap_or_default()];
    *EventId::of_parts(parts.map(str::as_bytes)).as_bytes()
}

/// What a stored event tells of; `None` if the API knows nothing of such, or the bytes are no envelope.
pub fn fact_of(envelope: &[u8]) -> Option<FactId> {
    Stored::read(envelope)?.fact()
}

/// Of a stored event, what it may tell of.
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    category: Cow<'a, str>,
    #[serde(borrow)]
    application_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    call: Option<Ids<'a>>,
    #[serde(borrow)]
    room: Option<Ids<'a>>,
    #[serde(borrow)]
    participant: Option<Ids<'a>>,
}

/// Of a call, a room or a participant the id, each under a name of its own.
#[derive(Deserialize)]
struct Ids<'a> {
    #[serde(borrow, default)]
    call_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    room_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    participant_id: Option<Cow<'a, str>>,
}

impl<'a> Stored<'a> {
    fn read(envelope: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(envelope).ok()
    }

    fn room_id(&self) -> Option<&str> {
        self.data.room.as_ref()?.room_id.as_deref()
    }

    fn fact(&self) -> Option<FactId> {
        let category = Category::of(&self.data.category);
        let kind = FactKind::by(category)?;
        let call_id = || self.data.call.as_ref()?.call_id.as_deref();
        let key = if category.is_call() { call_id() } else { self.room_id() };
        let participant = self.data.participant.as_ref().and_then(|it| it.participant_id.as_deref());
        // Without the room, the participant alone is no help.
        let participant = participant.filter(|_| key.is_some() && category.is_participant());
        Some(fact_id(self.data.application_id.as_deref()?, kind, key.unwrap_or_default(), participant))
    }
}

#[cfg(test)]
mod tests;
