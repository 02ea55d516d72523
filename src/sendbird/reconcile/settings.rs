//! `reconcile.*`: that a bridge asks by itself what a gap lost, and of whom.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::secret::Secret;
use crate::domain::units::Span;
use crate::sendbird::api::ApplicationId;

/// `reconcile.*`: what a gap lost, asked for by the bridge itself. Without this table it never does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How often to look whether there was a gap, 1s to 24h; without one nothing is asked.
    pub every: Span,
    /// The application to ask for; default: that of `access.applications`, if it is exactly one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// The address of the Calls Platform API, for a proxy; default: Sendbird's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
}

impl Settings {
    /// The application, where those of `access` are given; `None` if that is not clear.
    pub fn application<'a>(&'a self, allowed: &'a [String]) -> Option<&'a str> {
        match (&self.application, allowed) {
            (Some(named), _) => Some(named),
            (None, [one]) => Some(one),
            (None, _) => None,
        }
    }

    /// Every fault, as key and message; `allowed` are those of `access`, and `tokens` those of the application.
    pub fn check(&self, allowed: &[String], tokens: &[Secret]) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if !(Span::from_secs(1)..=Span::from_secs(24 * 3600)).contains(&self.every) {
            faults.push(("every", format!("expected 1s to 24h, but found {}", self.every)));
        }
        if tokens.is_empty() {
            faults.push((
                "every",
                "expected a token of the application in access.api_tokens, or of its own, to ask with, but found none"
                    .into(),
            ));
        }
        if let Some(url) = self.api_url.as_ref().filter(|url| !is_http(url)) {
            faults.push((
                "api_url",
                format!("expected an http or https URL without user and query, but found \"{url}\""),
            ));
        }
        let Some(application) = self.application(allowed) else {
            let found = allowed.len();
            let message = format!("expected one, here or as the only one of access.applications, but found {found}");
            faults.push(("application", message));
            return faults;
        };
        if !allowed.is_empty() && !allowed.iter().any(|known| known.eq_ignore_ascii_case(application)) {
            faults.push(("application", format!("expected one of access.applications, but found \"{application}\"")));
        }
        faults.extend(application.parse::<ApplicationId>().err().map(|message| ("application", message)));
        faults
    }
}

fn is_http(url: &str) -> bool {
    let rest = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let authority = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let (host, port) =
        authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((authority, "443"));
    !host.is_empty()
        && port.parse::<u16>().is_ok_and(|port| port != 0)
        && url.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\"<>\\^`{|}".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_must_be_clear_whom_to_ask_for() {
        let ask = |settings: &Settings, allowed: &[&str], tokens: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(|id| (*id).to_owned()).collect();
            let tokens: Vec<Secret> = tokens.iter().map(|token| Secret::new(*token)).collect();
            let faults = settings.check(&allowed, &tokens);
            faults.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let none = Settings { every: Span::from_secs(60), application: None, api_url: None };
        assert!(ask(&none, &["A"], &["t"]).is_empty());
        assert_eq!(ask(&none, &["A", "B"], &["t"]), ["application"]);
        assert_eq!(ask(&none, &[], &[]), ["every", "application"]);
        let named = Settings { application: Some("B".into()), ..none.clone() };
        assert!(ask(&named, &["a", "b"], &["t"]).is_empty());
        assert_eq!(ask(&named, &["A"], &["t"]), ["application"]);
        let odd = Settings { application: Some("a/b".into()), every: Span::from_millis(1), ..none.clone() };
        assert_eq!(ask(&odd, &[], &["t"]), ["every", "application"]);
        for wrong in
            ["ftp://x", "https://", "https://:443", "https://h:0", "https://h:port", "https://h/a b", "https://h/<"]
        {
            let nowhere = Settings { api_url: Some(wrong.into()), ..none.clone() };
            assert_eq!(ask(&nowhere, &["A"], &["t"]), ["api_url"], "{wrong}");
        }
        for fine in ["https://h", "http://h:8080/v1", "https://[::1]/", "https://[::1]:8443"] {
            let there = Settings { api_url: Some(fine.into()), ..none.clone() };
            assert!(ask(&there, &["A"], &["t"]).is_empty(), "{fine}");
        }
    }
}
