//! The webhook settings of an application, a change of them, and whether one has come about.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::failure::Failure;
use super::fields::Fields;
use super::request::Body;
use crate::domain::secret::Secret;
use crate::sendbird::category::Category;

/// What stands for all events; documented.
pub const ALL: &str = "*";

/// The last segment of a path is hidden in messages if it is at least so long.
const SHORTEST_SECRET: usize = 4;

/// The settings as Sendbird tells them. What it does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Webhook {
    /// Whether anything is delivered (documented).
    pub enabled: Option<bool>,
    /// Where deliveries go (documented). It may end in the bridge's path secret, so nothing prints it by itself.
    pub url: Option<Secret>,
    /// The names of the events that are delivered; `*` is all, an empty list none (documented).
    pub enabled_events: Option<Vec<String>>,
    /// Whether deliveries name all members (likely to be returned).
    pub include_members: Option<bool>,
    /// The names of all events there are; only if asked for (documented).
    pub all_webhook_categories: Option<Vec<String>>,
}

/// One of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `enabled`.
    Enabled,
    /// `url`.
    Url,
    /// `enabled_events`.
    EnabledEvents,
    /// `include_members`.
    IncludeMembers,
}

impl Setting {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Url => "url",
            Self::EnabledEvents => "enabled_events",
            Self::IncludeMembers => "include_members",
        }
    }
}

impl Webhook {
    /// Reads the answer `{"webhook": {…}}` (documented), or the object alone (guessed).
    pub(super) fn parse(answer: &Value) -> Result<Self, Failure> {
        let nested = answer.get("webhook").filter(|nested| nested.is_object());
        let fields = Fields(nested.unwrap_or(answer));
        let webhook = Self {
            enabled: fields.boolean("enabled"),
            url: fields.text("url").map(Secret::new),
            enabled_events: fields.texts("enabled_events"),
            include_members: fields.boolean("include_members"),
            all_webhook_categories: fields.texts("all_webhook_categories"),
        };
        if nested.is_none() && webhook == Self::default() {
            return Err(Failure::Unreadable("expected the object webhook, but found none".into()));
        }
        Ok(webhook)
    }
}

/// What is to be set. What is `None` stays as it is (documented: each is optional).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// See [`Webhook::enabled`].
    pub enabled: Option<bool>,
    /// See [`Webhook::url`].
    pub url: Option<Secret>,
    /// See [`Webhook::enabled_events`].
    pub enabled_events: Option<Vec<String>>,
    /// See [`Webhook::include_members`].
    pub include_members: Option<bool>,
}

/// How a setting compares with what was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is as wanted.
    Same,
    /// It is not.
    Different,
    /// Sendbird does not return it.
    NotReturned,
}

impl Change {
    /// Whether nothing is to be set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is to be set.
    pub fn settings(&self) -> Vec<Setting> {
        self.compare(&Webhook::default()).into_iter().map(|(setting, _)| setting).collect()
    }

    /// The same change, but without what is so in `found` already. A list of all names is not `*`: that also means the
    /// events that come one day.
    pub fn without(&self, found: &Webhook) -> Self {
        let same: Vec<Setting> =
            self.compare(found).into_iter().filter(|it| it.1 == Found::Same).map(|it| it.0).collect();
        let missing = |setting| !same.contains(&setting);
        let found_events = found.enabled_events.as_deref().map(set);
        Self {
            enabled: self.enabled.filter(|_| missing(Setting::Enabled)),
            url: self.url.clone().filter(|_| missing(Setting::Url)),
            enabled_events: self.enabled_events.clone().filter(|events| found_events != Some(set(events))),
            include_members: self.include_members.filter(|_| missing(Setting::IncludeMembers)),
        }
    }

    /// The body of the `PUT`; only what is to be set is in it.
    pub(super) fn body(&self) -> Body {
        let mut body = Map::new();
        if let Some(enabled) = self.enabled {
            body.insert("enabled".into(), enabled.into());
        }
        if let Some(url) = &self.url {
            body.insert("url".into(), url.expose().into());
        }
        if let Some(events) = &self.enabled_events {
            body.insert("enabled_events".into(), events.clone().into());
        }
        if let Some(include) = self.include_members {
            body.insert("include_members".into(), include.into());
        }
        Body { json: Secret::new(Value::Object(body).to_string()), hidden: self.secrets() }
    }

    /// What no message about it may show: the URL, and the last segment of its path alone.
    fn secrets(&self) -> Vec<Secret> {
        let Some(url) = self.url.as_ref().map(Secret::expose) else { return Vec::new() };
        let last = url.trim_end_matches('/').rsplit('/').next().filter(|last| last.len() >= SHORTEST_SECRET);
        [Some(url), last].into_iter().flatten().map(Secret::new).collect()
    }

    /// Each setting that is to be set, in a fixed order, and how `found` has it.
    pub fn compare(&self, found: &Webhook) -> Vec<(Setting, Found)> {
        let compared = [
            self.url.as_ref().map(|url| (Setting::Url, check_value(found.url.as_ref(), |found| found == url))),
            self.enabled
                .map(|enabled| (Setting::Enabled, check_value(found.enabled.as_ref(), |found| *found == enabled))),
            self.enabled_events.as_ref().map(|events| {
                let all = found.all_webhook_categories.as_deref();
                let same = |found: &Vec<String>| same_events(events, found, all);
                (Setting::EnabledEvents, check_value(found.enabled_events.as_ref(), same))
            }),
            self.include_members.map(|include| {
                (Setting::IncludeMembers, check_value(found.include_members.as_ref(), |found| *found == include))
            }),
        ];
        compared.into_iter().flatten().collect()
    }
}

fn check_value<T>(found: Option<&T>, same: impl FnOnce(&T) -> bool) -> Found {
    match found.map(same) {
        None => Found::NotReturned,
        Some(true) => Found::Same,
        Some(false) => Found::Different,
    }
}

/// Names without order, case and repetition, which do not matter.
fn set(events: &[String]) -> BTreeSet<String> {
    events.iter().map(|event| event.to_ascii_lowercase()).collect()
}

/// Whether what was read back is what was set. That Sendbird answers `*` with the names of all events is possible
/// (guessed), so all of them, as far as they are known, count as it.
fn same_events(wanted: &[String], found: &[String], all: Option<&[String]>) -> bool {
    let known = || Category::ALL.map(|category| category.label().to_owned());
    let all = all.map_or_else(|| set(&known()), set);
    let (wanted, found) = (set(wanted), set(found));
    wanted == found || (wanted.contains(ALL) && found.is_superset(&all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn events(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn settings_are_read_as_far_as_they_are_returned() {
        let answer = json!({ "webhook": { "enabled": true, "url": "https://h/x", "enabled_events": ["*"], "new": 1 } });
        let webhook = Webhook::parse(&answer).expect("settings");
        assert_eq!((webhook.enabled, webhook.include_members), (Some(true), None));
        assert_eq!(webhook.url.as_ref().map(Secret::expose), Some("https://h/x"));
        assert_eq!(Webhook::parse(&answer["webhook"]), Ok(webhook));
        assert_eq!(Webhook::parse(&json!({ "webhook": {} })), Ok(Webhook::default()));
        assert!(Webhook::parse(&json!({})).is_err() && Webhook::parse(&json!({ "webhook": [] })).is_err());
    }

    #[test]
    fn only_what_is_to_be_set_is_sent() {
        assert_eq!(Change::default().body().json.expose(), "{}");
        let change = Change { enabled: Some(false), enabled_events: Some(Vec::new()), ..Change::default() };
        assert_eq!(change.body().json.expose(), r#"{"enabled":false,"enabled_events":[]}"#);
        let change = Change { url: Some(Secret::new("u")), include_members: Some(true), ..Change::default() };
        assert_eq!(change.body().json.expose(), r#"{"include_members":true,"url":"u"}"#);
    }

    #[test]
    fn what_sendbird_does_not_tell_is_neither_same_nor_different() {
        let change = Change {
            enabled: Some(true),
            url: Some(Secret::new("a")),
            enabled_events: Some(events(&["room:create"])),
            include_members: Some(true),
        };
        let not_returned: Vec<Found> =
            change.compare(&Webhook::default()).into_iter().map(|(_, found)| found).collect();
        assert_eq!(not_returned, [Found::NotReturned; 4]);
        let other = Webhook {
            enabled: Some(true),
            url: Some(Secret::new("b")),
            enabled_events: Some(events(&["ROOM:CREATE", "room:create"])),
            include_members: Some(false),
            all_webhook_categories: None,
        };
        let compared: Vec<_> = change.compare(&other).into_iter().map(|(what, found)| (what.name(), found)).collect();
        let expected = [
            ("url", Found::Different),
            ("enabled", Found::Same),
            ("enabled_events", Found::Same),
            ("include_members", Found::Different),
        ];
        assert_eq!(compared, expected);
    }

    #[test]
    fn what_is_so_already_is_not_sent() {
        let found = Webhook { enabled: Some(true), url: Some(Secret::new("a")), ..Webhook::default() };
        let change = Change {
            enabled: Some(true),
            url: Some(Secret::new("b")),
            include_members: Some(false),
            enabled_events: None,
        };
        let missing = change.without(&found);
        assert_eq!(missing.settings(), [Setting::Url, Setting::IncludeMembers]);
        assert!(
            change
                .without(&found)
                .without(&Webhook { url: Some(Secret::new("b")), include_members: Some(false), ..found })
                .is_empty()
        );
    }

    #[test]
    fn all_events_may_be_spelled_out_when_read_back() {
        let known = Category::ALL.map(Category::label);
        let star = events(&["*"]);
        assert!(same_events(&star, &events(&known), None));
        assert!(same_events(&star, &[events(&known), events(&["room:new"])].concat(), None));
        assert!(!same_events(&star, &events(&known[1..]), None) && !same_events(&star, &[], None));
        assert!(!same_events(&events(&known), &star, None) && same_events(&[], &[], None));
        let more = events(&["a", "b"]);
        assert!(same_events(&star, &more, Some(&more)) && !same_events(&star, &events(&known), Some(&more)));
    }

    #[test]
    fn a_list_of_all_names_is_replaced_by_what_stands_for_all() {
        let all = events(&Category::ALL.map(Category::label));
        let found = Webhook { enabled_events: Some(all.clone()), ..Webhook::default() };
        let change = |enabled_events| Change { enabled_events: Some(enabled_events), ..Change::default() };
        assert!(!change(events(&["*"])).without(&found).is_empty());
        assert!(change(all.iter().rev().map(|name| name.to_uppercase()).collect()).without(&found).is_empty());
    }
}
