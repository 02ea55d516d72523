//! The webhook settings as text and JSON, without what may be secret in a URL.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::domain::secret::{HIDDEN, Secret};
use crate::sendbird::api::webhook::ALL;
use crate::sendbird::api::{Change, Setting, Webhook};
use crate::sendbird::category::Category;

/// How settings are shown.
pub(super) struct Shown<'a> {
    /// The path of the bridge, which may be shown.
    pub(super) path: &'a str,
    /// Whether URLs are shown whole.
    pub(super) whole_urls: bool,
}

/// The settings in the order in which they are shown.
const ORDER: [Setting; 4] = [Setting::Enabled, Setting::Url, Setting::EnabledEvents, Setting::IncludeMembers];

impl Shown<'_> {
    /// All settings; `null` is what Sendbird does not tell.
    pub(super) fn json(&self, webhook: &Webhook) -> Value {
        let mut shown: serde_json::Map<String, Value> =
            ORDER.into_iter().map(|setting| (setting.name().to_owned(), self.value(setting, webhook))).collect();
        if let Some(all) = &webhook.all_webhook_categories {
            shown.insert("all_webhook_categories".into(), json!(all));
        }
        Value::Object(shown)
    }

    /// One of the settings.
    pub(super) fn value(&self, setting: Setting, webhook: &Webhook) -> Value {
        match setting {
            Setting::Enabled => json!(webhook.enabled),
            Setting::Url => json!(webhook.url.as_ref().map(|url| self.url(url))),
            Setting::EnabledEvents => json!(webhook.enabled_events),
            Setting::IncludeMembers => json!(webhook.include_members),
        }
    }

    /// One of the settings that are to be.
    pub(super) fn wanted(&self, setting: Setting, change: &Change) -> Value {
        let webhook = Webhook {
            enabled: change.enabled,
            url: change.url.clone(),
            enabled_events: change.enabled_events.clone(),
            include_members: change.include_members,
            all_webhook_categories: None,
        };
        self.value(setting, &webhook)
    }

    /// All settings, a line each, and a line for each event if all were asked for.
    pub(super) fn table(&self, webhook: &Webhook) -> String {
        let mut table = String::new();
        for setting in ORDER {
            // Writing to a text cannot fail.
            writeln!(table, "{:<18}{}", setting.name(), plain(&self.value(setting, webhook))).ok();
        }
        let enabled = webhook.enabled_events.as_deref().unwrap_or_default();
        for category in webhook.all_webhook_categories.iter().flatten() {
            let on = enabled.iter().any(|name| name == ALL || name.eq_ignore_ascii_case(category));
            let unknown = if Category::of(category) == Category::Other { "  (new to this program)" } else { "" };
            writeln!(table, "  {category:<32}{}{unknown}", if on { "on" } else { "off" }).ok();
        }
        table
    }

    /// The line of one change.
    pub(super) fn change(&self, setting: Setting, before: &Webhook, change: &Change) -> String {
        let (from, to) = (plain(&self.value(setting, before)), plain(&self.wanted(setting, change)));
        let hidden = if from == to { "  (they differ in what is hidden)" } else { "" };
        format!("{:<18}{from} -> {to}{hidden}\n", setting.name())
    }

    /// A URL up to the path of the bridge. Another path, a query and a user are hidden.
    fn url(&self, url: &Secret) -> String {
        let url = url.expose();
        if self.whole_urls {
            return url.to_owned();
        }
        let Some((scheme, rest)) = url.split_once("://") else { return HIDDEN.into() };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let host = authority.rsplit('@').next().unwrap_or_default();
        let user = if host.len() < authority.len() { format!("{HIDDEN}@") } else { String::new() };
        let (known, more) = match path.strip_prefix(self.path.trim_end_matches('/')) {
            Some(more) if more.is_empty() || more.starts_with(['/', '?', '#']) => {
                (self.path.trim_end_matches('/'), more)
            }
            _ => ("", path),
        };
        let more = match more {
            "" | "/" => more.to_owned(),
            more if more.starts_with('/') => format!("/{HIDDEN}"),
            more => format!("{}{HIDDEN}", &more[..1]),
        };
        format!("{scheme}://{user}{host}{known}{more}")
    }
}

/// A value without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "(not returned)".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "(none)".into(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_up_to_the_bridges_path() {
        let shown = Shown { path: "/webhooks/sendbird", whole_urls: false };
        for (url, expected) in [
            ("https://h:8443/webhooks/sendbird", "https://h:8443/webhooks/sendbird"),
            ("https://h/webhooks/sendbird/", "https://h/webhooks/sendbird/"),
            ("https://h/webhooks/sendbird/canary", "https://h/webhooks/sendbird/<hidden>"),
            ("https://h/webhooks/sendbird?canary", "https://h/webhooks/sendbird?<hidden>"),
            ("https://h/webhooks/sendbirdcanary", "https://h/<hidden>"),
            ("https://h/canary/x", "https://h/<hidden>"),
            ("https://u:canary@h/", "https://<hidden>@h/"),
            ("https://h", "https://h"),
            ("https://h?canary", "https://h?<hidden>"),
            ("canary", "<hidden>"),
        ] {
            assert_eq!(shown.url(&Secret::new(url)), expected);
        }
        let whole = Shown { path: "/", whole_urls: true };
        assert_eq!(whole.url(&Secret::new("https://h/x")), "https://h/x");
    }

    #[test]
    fn what_is_not_told_is_null_or_said() {
        let shown = Shown { path: "/", whole_urls: false };
        let nothing = Webhook::default();
        assert_eq!(shown.json(&nothing)["url"], Value::Null);
        assert_eq!(shown.table(&nothing).matches("(not returned)").count(), 4);
    }

    #[test]
    fn a_change_that_is_hidden_is_still_said() {
        let shown = Shown { path: "/w", whole_urls: false };
        let before = Webhook { url: Some(Secret::new("https://h/w/canary1")), ..Webhook::default() };
        let change = Change { url: Some(Secret::new("https://h/w/canary2")), ..Change::default() };
        let line = shown.change(Setting::Url, &before, &change);
        assert!(line.contains("they differ in what is hidden") && !line.contains("canary"), "{line}");
    }
}
