//! `[applications."ID"]`: what an application has of its own, its tokens and its rate.
//!
//! The signature is verified before anything looks into the body, so with the tokens of all applications. Whose token it
//! was is compared with the application that the delivery names once that is known.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Denied;
use crate::domain::secret::Secret;
use crate::sendbird::api::ApplicationId;
use crate::sendbird::signature::{self, Keys};

/// `applications.<ID>.*`: what one application has of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Application {
    /// The master API tokens of this application. A delivery that names it must be signed with one of them, and no other
    /// delivery may be. Without any, those of `access.api_tokens` sign for it.
    pub api_tokens: Vec<Secret>,
    /// Deliveries per second that may name it before they are answered 429; none means no limit.
    pub rate: Option<NonZeroU32>,
}

/// `applications.*`: the applications that have something of their own, each under its ID, in which case does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Applications(BTreeMap<String, Application>);

/// What `access` says of the same.
pub(super) struct Beside<'a> {
    /// `access.api_tokens`.
    pub(super) tokens: &'a [Secret],
    /// `access.applications`.
    pub(super) allowed: &'a [String],
    /// Whether `access.signature` is not `off`.
    pub(super) are_signatures_checked: bool,
}

impl Applications {
    /// Whether no application has anything of its own.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens that deliveries are signed with that name `application`, and the key that they are under; `shared` are
    /// those of `access.api_tokens`.
    pub fn tokens_of<'a>(&'a self, application: &str, shared: &'a [Secret]) -> (String, &'a [Secret]) {
        let own =
            |(id, it): &(&String, &Application)| id.eq_ignore_ascii_case(application) && !it.api_tokens.is_empty();
        match self.0.iter().find(own) {
            Some((id, own)) => (format!("applications.{id}.api_tokens"), &own.api_tokens),
            None => ("access.api_tokens".into(), shared),
        }
    }

    /// Replaces the tokens that are under this key; `false` if no application has it.
    pub fn replace_tokens(&mut self, key: &str, tokens: &[Secret]) -> bool {
        let id = key.strip_prefix("applications.").and_then(|rest| rest.strip_suffix(".api_tokens"));
        let Some(application) = id.and_then(|id| self.0.get_mut(id)) else { return false };
        application.api_tokens = tokens.to_vec();
        true
    }

    /// Every fault, as key and message. `beside` is what `access` says.
    pub(super) fn check(&self, beside: &Beside<'_>) -> Vec<(String, String)> {
        let faults = self.0.iter().flat_map(|(id, application)| {
            let faults = self.faults_of(id, application, beside);
            faults.into_iter().map(move |(field, message)| (format!("applications.{id}{field}"), message))
        });
        faults.collect()
    }

    fn faults_of(&self, id: &str, application: &Application, beside: &Beside<'_>) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        faults.extend(id.parse::<ApplicationId>().err().map(|message| ("", message)));
        let before = || self.0.iter().take_while(|(other, _)| other.as_str() < id);
        if let Some((other, _)) = before().find(|(other, _)| other.eq_ignore_ascii_case(id)) {
            let message =
                format!("expected one table of an application, but found \"{other}\" too, which is the same ID");
            faults.push(("", message));
        }
        if !beside.allowed.is_empty() && !beside.allowed.iter().any(|known| known.eq_ignore_ascii_case(id)) {
            faults.push(("", format!("expected one of access.applications, but found \"{id}\"")));
        }
        if *application == Application::default() {
            faults.push(("", "expected api_tokens or a rate, but found neither".into()));
        }
        let tokens = &application.api_tokens;
        if !tokens.is_empty() && !beside.are_signatures_checked {
            let message = "expected access.signature to be \"required\" or \"if-present\", because these tokens must sign, \
                           but found \"off\"";
            faults.push((".api_tokens", message.into()));
        }
        faults.extend(unlike_a_token(tokens).map(|message| (".api_tokens", message)));
        let shared = std::iter::once(("access".into(), beside.tokens));
        let others = before().map(|(other, it)| (format!("applications.{other}"), it.api_tokens.as_slice()));
        if let Some((other, _)) = shared.chain(others).find(|(_, of)| of.iter().any(|token| tokens.contains(token))) {
            let message =
                format!("expected tokens that sign for no other application, but found one of {other}.api_tokens");
            faults.push((".api_tokens", message));
        }
        faults
    }

    /// Whether any has tokens of its own.
    pub(super) fn have_tokens(&self) -> bool {
        self.0.values().any(|application| !application.api_tokens.is_empty())
    }

    /// Each that has a rate, by its ID.
    pub(super) fn rates(&self) -> impl Iterator<Item = (&String, NonZeroU32)> {
        self.0.iter().filter_map(|(id, application)| Some((id, application.rate?)))
    }
}

/// What is wrong with tokens that no header can carry.
pub(super) fn unlike_a_token(tokens: &[Secret]) -> Option<String> {
    let is_plain = |token: &Secret| token.expose().bytes().all(|byte| byte.is_ascii_graphic());
    let message = "expected tokens of visible ASCII characters, but found one with others, such as a space";
    (!tokens.iter().all(is_plain)).then(|| message.into())
}

/// All tokens, and for which application each signs.
pub(super) struct Tokens {
    keys: Keys,
    /// In the order of the keys; `None` of those of `access.api_tokens`, which sign for all that have none of their own.
    owners: Vec<Option<String>>,
}

impl Tokens {
    pub(super) fn new(shared: &[Secret], applications: &Applications) -> Self {
        let shared = shared.iter().map(|token| (None, token));
        let own =
            applications.0.iter().flat_map(|(id, it)| it.api_tokens.iter().map(|token| (Some(id.clone()), token)));
        let (owners, tokens): (Vec<_>, Vec<_>) = shared.chain(own).unzip();
        Self { keys: Keys::new(tokens.into_iter().map(Secret::expose)), owners }
    }

    /// The number of the token that a header's value is the body's signature by.
    pub(super) fn signer(&self, body: &[u8], value: &[u8]) -> Option<usize> {
        signature::verify(&self.keys, body, value)
    }

    /// Whether a delivery may name `application` that the token with this number has signed, or none has, where a
    /// signature is not required.
    pub(super) fn check_signer(&self, signer: Option<usize>, application: Option<&str>) -> Result<(), Denied> {
        let is_named = |owner: &&String| application.is_some_and(|named| owner.eq_ignore_ascii_case(named));
        let named = self.owners.iter().flatten().find(is_named);
        match signer {
            None if named.is_some() => Err(Denied::SignatureMissing),
            None => Ok(()),
            Some(number) if self.owners.get(number).map(Option::as_ref) == Some(named) => Ok(()),
            Some(_) => Err(Denied::ApplicationToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(toml: &str) -> T {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(toml)).extract().unwrap()
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let faults = |applications: &str, access: &str| {
            let faults = read::<Settings>(access).check_applications(&read(applications));
            assert!(faults.iter().all(|(_, message)| message.contains("expected") && !message.contains("canary")));
            faults.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for (applications, access, key) in [
            ("'A 1'.rate = 1", "", "applications.A 1"),
            ("A-1.rate = 1\na-1.api_tokens = ['canary']", "", "applications.a-1"),
            ("A-1.rate = 1", "applications = ['B-2']", "applications.A-1"),
            ("A-1 = {}", "", "applications.A-1"),
            ("A-1.api_tokens = []", "", "applications.A-1"),
            ("A-1.api_tokens = ['canary']", "signature = 'off'", "applications.A-1.api_tokens"),
            ("A-1.api_tokens = ['Token: canary']", "", "applications.A-1.api_tokens"),
            ("A-1.api_tokens = ['u', 'canary']", "api_tokens = ['t', 'canary']", "applications.A-1.api_tokens"),
            ("A-1.api_tokens = ['canary']\nB-2.api_tokens = ['u', 'canary']", "", "applications.B-2.api_tokens"),
        ] {
            assert_eq!(faults(applications, access), [key], "{applications}; {access}");
        }
        for (applications, access) in [
            ("", ""),
            ("A-1.rate = 1", "signature = 'off'\napplications = ['a-1']"),
            ("A-1.api_tokens = ['t', 'u']\nB-2 = { api_tokens = ['v'], rate = 5 }", "api_tokens = ['w']"),
            ("A-1.api_tokens = ['t']", "signature = 'if-present'"),
        ] {
            assert_eq!(faults(applications, access), [""; 0], "{applications}; {access}");
        }
    }

    #[test]
    fn a_token_that_two_applications_share_signs_for_the_first_alone() {
        // No such configuration is accepted. If one were, it would refuse more, and nothing else.
        let applications = read("A-1.api_tokens = ['t']\na-1.api_tokens = ['u']\nB-2.api_tokens = ['t']");
        let tokens = Tokens::new(&[Secret::new("u")], &applications);
        let of = |token: &str, application| {
            let value = signature::sign(token, b"body");
            tokens.check_signer(Some(tokens.signer(b"body", value.as_bytes()).unwrap()), application)
        };
        assert_eq!(of("t", Some("a-1")), Ok(()));
        assert_eq!(of("t", Some("B-2")), Err(Denied::ApplicationToken));
        assert_eq!(of("t", None), Err(Denied::ApplicationToken));
        assert_eq!(of("u", Some("A-1")), Err(Denied::ApplicationToken));
        assert_eq!((of("u", Some("C-3")), of("u", None)), (Ok(()), Ok(())));
    }

    #[test]
    fn the_tokens_of_an_application_are_its_own_or_those_of_all() {
        let shared = [Secret::new("t")];
        let mut applications: Applications = read("A-1.api_tokens = ['u']\nB-2.rate = 1");
        let of = |applications: &Applications, id: &str| {
            let (key, tokens) = applications.tokens_of(id, &shared);
            (key, tokens[0].expose().to_owned())
        };
        assert_eq!(of(&applications, "a-1"), ("applications.A-1.api_tokens".into(), "u".into()));
        for other in ["B-2", "C-3"] {
            assert_eq!(of(&applications, other), ("access.api_tokens".into(), "t".into()));
        }
        let renewed = [Secret::new("v")];
        for wrong in ["access.api_tokens", "applications.C-3.api_tokens", "applications.A-1", "applications.A-1.rate"] {
            assert!(!applications.replace_tokens(wrong, &renewed), "{wrong}");
        }
        assert!(applications.replace_tokens("applications.A-1.api_tokens", &renewed));
        assert_eq!(of(&applications, "A-1").1, "v");
    }
}
