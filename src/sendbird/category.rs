//! The kinds of delivery that Sendbird documents, and one name for all others.
//!
//! The set is open on Sendbird's side and closed on ours: a category outside it is carried through as
//! text by the delivery, and is [`Category::Other`] wherever a closed set is needed, as in a metric's label.

use std::fmt;
use std::str::FromStr;

/// What a delivery tells of. The 13 known categories are documented by Sendbird.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Somebody calls somebody.
    DirectCallDial,
    /// The callee answers.
    DirectCallAccept,
    /// The call is over, answered or not.
    DirectCallEnd,
    /// A room is made.
    RoomCreate,
    /// A room is gone.
    RoomDelete,
    /// A user comes in, under a new participant id each time.
    RoomParticipantEnter,
    /// A participant leaves.
    RoomParticipantExit,
    /// A participant's connection is lost, or cut.
    RoomParticipantDisconnect,
    /// A user invites another into a room.
    RoomInvitationSend,
    /// The invitee comes.
    RoomInvitationAccept,
    /// The inviter takes it back.
    RoomInvitationCancel,
    /// The invitee doesn't come.
    RoomInvitationDecline,
    /// The invitee says nothing.
    RoomInvitationNoAnswer,
    /// Any other; the delivery keeps its text.
    Other,
}

impl Category {
    /// The 13 known categories, in the order in which a call and a room see them.
    pub const ALL: [Self; 13] = [
        Self::DirectCallDial,
        Self::DirectCallAccept,
        Self::DirectCallEnd,
        Self::RoomCreate,
        Self::RoomParticipantEnter,
        Self::RoomInvitationSend,
        Self::RoomInvitationAccept,
        Self::RoomInvitationCancel,
        Self::RoomInvitationDecline,
        Self::RoomInvitationNoAnswer,
        Self::RoomParticipantExit,
        Self::RoomParticipantDisconnect,
        Self::RoomDelete,
    ];

    /// Every label: the 13 known categories and `other`.
    pub const LABELS: [&str; 14] = {
        let mut labels = [Self::Other.label(); 14];
        let mut i = 0;
        while i < Self::ALL.len() {
            labels[i] = Self::ALL[i].label();
            i += 1;
        }
        labels
    };

    /// The known category of this text, whatever the case of its letters, or [`Category::Other`].
    pub fn of(text: &str) -> Self {
        Self::ALL.into_iter().find(|known| known.label().eq_ignore_ascii_case(text)).unwrap_or(Self::Other)
    }

    /// The name from a closed set: the known category as Sendbird writes it, or `other`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::DirectCallDial => "direct_call:dial",
            Self::DirectCallAccept => "direct_call:accept",
            Self::DirectCallEnd => "direct_call:end",
            Self::RoomCreate => "room:create",
            Self::RoomDelete => "room:delete",
            Self::RoomParticipantEnter => "room:participant_enter",
            Self::RoomParticipantExit => "room:participant_exit",
            Self::RoomParticipantDisconnect => "room:participant_disconnect",
            Self::RoomInvitationSend => "room:invitation_send",
            Self::RoomInvitationAccept => "room:invitation_accept",
            Self::RoomInvitationCancel => "room:invitation_cancel",
            Self::RoomInvitationDecline => "room:invitation_decline",
            Self::RoomInvitationNoAnswer => "room:invitation_no_answer",
            Self::Other => "other",
        }
    }

    /// Whether it is one of the 13.
    pub fn is_known(self) -> bool {
        self != Self::Other
    }

    /// Whether it is a known category of direct calls.
    pub fn is_call(self) -> bool {
        matches!(self, Self::DirectCallDial | Self::DirectCallAccept | Self::DirectCallEnd)
    }

    /// Whether it is a known category of rooms, those of participants and invitations included.
    pub fn is_room(self) -> bool {
        self.is_known() && !self.is_call()
    }

    /// Whether it tells of a participant of a room.
    pub fn is_participant(self) -> bool {
        matches!(self, Self::RoomParticipantEnter | Self::RoomParticipantExit | Self::RoomParticipantDisconnect)
    }

    /// Whether it tells of an invitation into a room.
    pub fn is_invitation(self) -> bool {
        self.is_room() && !self.is_participant() && !matches!(self, Self::RoomCreate | Self::RoomDelete)
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// For a command line: only the 13 known categories, ignoring case.
impl FromStr for Category {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Self::of(text) {
            Self::Other => {
                let known = Self::ALL.map(Self::label).join(", ");
                Err(format!("expected one of {known}, but found \"{text}\""))
            }
            known => Ok(known),
        }
    }
}

/// What the type of every event begins with.
const TYPE_PREFIX: &str = "com.sendbird.calls.";

/// The type of events of a category, or of a pattern of categories; a type is left as it is.
pub fn event_type(text: &str) -> String {
    if text.starts_with(TYPE_PREFIX) { text.to_owned() } else { format!("{TYPE_PREFIX}{}", text.replace(':', ".")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_back_in_any_case() {
        for category in Category::ALL {
            assert_eq!(category.label().parse(), Ok(category));
            assert_eq!(Category::of(&category.label().to_ascii_uppercase()), category);
        }
        assert_eq!(Category::of("room:explode"), Category::Other);
        assert_eq!(Category::of("other"), Category::Other);
        assert!("other".parse::<Category>().is_err_and(|error| error.contains("direct_call:dial")));
    }

    #[test]
    fn families() {
        let count = |of: fn(Category) -> bool| Category::ALL.into_iter().filter(|&category| of(category)).count();
        assert_eq!(count(Category::is_call), 3);
        assert_eq!(count(Category::is_room), 10);
        assert_eq!(count(Category::is_participant), 3);
        assert_eq!(count(Category::is_invitation), 5);
        for category in Category::ALL {
            assert_eq!(category.is_invitation(), category.label().starts_with("room:invitation_"));
        }
    }
}
