//! `sasl` of a Kafka sink: who the bridge is to the brokers.

use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::domain::secret::Secret;
use crate::outbound;
use crate::sink::settings::{Faults, fault};

/// Who the bridge is to the brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`; default `SCRAM-SHA-512`.
    pub mechanism: Mechanism,
    /// The user's name; required, but with `OAUTHBEARER` there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password; required, but with `OAUTHBEARER` there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Where `OAUTHBEARER` has its tokens from, and required with it: the https URL of an issuer's token endpoint, or the
    /// file:// URL of a file that somebody else keeps up to date. Plain http only to this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_endpoint: Option<String>,
    /// Who the bridge is to the token endpoint; required with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The secret of `client_id`; required with a token endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<Secret>,
    /// The scope to ask for, words with spaces between; default: the issuer's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// A PEM file with the only certificate authorities that are trusted for the token endpoint; default: the platform's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Mechanism {
    /// The password itself; only with `tls`.
    #[serde(rename = "PLAIN")]
    Plain,
    /// A proof of the password, with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A proof of the password, with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token that an issuer has given; only with `tls`.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    /// As the client calls it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }

    /// Whether it sends the secret itself, so that whoever reads the connection has it.
    pub(super) fn sends_secret(self) -> bool {
        match self {
            Self::Plain | Self::OauthBearer => true,
            Self::ScramSha256 | Self::ScramSha512 => false,
        }
    }
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenEndpoint {
    /// A file that somebody else keeps up to date.
    File(PathBuf),
    /// An issuer.
    Issuer(Issuer),
}

/// An issuer of tokens, and who the bridge is to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issuer {
    pub(super) url: Uri,
    pub(super) client_id: String,
    pub(super) client_secret: Secret,
    pub(super) scope: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
}

impl Sasl {
    /// Where tokens come from; `None` where there are a name and a password.
    ///
    /// # Errors
    /// All faults, with keys under `sasl`. None echoes a value: somebody may have put a secret into the wrong place.
    pub(super) fn parse(&self) -> Result<Option<TokenEndpoint>, Faults> {
        let mechanism = self.mechanism.as_str();
        let wanted = |key: &str, what: &str| {
            let because = format!("because sasl.mechanism is \"{mechanism}\"");
            fault(format!("sasl.{key}"), format!("expected {what} {because}, but found none"))
        };
        let unwanted = |keys: &[(&str, bool)], why: &str| -> Faults {
            let given = keys.iter().filter(|(_, given)| *given);
            given.map(|(key, _)| fault(format!("sasl.{key}"), format!("expected none {why}, but found one"))).collect()
        };
        let of_issuers = [
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_some()),
            ("scope", self.scope.is_some()),
            ("ca_file", self.ca_file.is_some()),
        ];
        let name = self.username.as_deref().filter(|name| !name.is_empty());
        if self.mechanism != Mechanism::OauthBearer {
            let why = format!("because sasl.mechanism is \"{mechanism}\"");
            let mut faults = unwanted(&[("token_endpoint", self.token_endpoint.is_some())], &why);
            faults.extend(unwanted(&of_issuers, &why));
            faults.extend(name.is_none().then(|| wanted("username", "a username")));
            faults.extend(self.password.is_none().then(|| wanted("password", "a password")));
            return if faults.is_empty() { Ok(None) } else { Err(faults) };
        }
        let why = "because OAUTHBEARER has a token instead";
        let mut faults = unwanted(&[("username", name.is_some()), ("password", self.password.is_some())], why);
        let place = match &self.token_endpoint {
            None => {
                faults.push(wanted("token_endpoint", "an https:// or file:// URL"));
                None
            }
            Some(text) => place(text)
                .map_err(|found| {
                    let expected = "expected an https:// or file:// URL (http:// only to this machine)";
                    faults.push(fault("sasl.token_endpoint", format!("{expected}, but found {found}")));
                })
                .ok(),
        };
        let source = match place {
            None => None,
            Some(EndpointUrl::File(path)) => {
                faults.extend(unwanted(&of_issuers, "because sasl.token_endpoint is a file"));
                Some(TokenEndpoint::File(path))
            }
            Some(EndpointUrl::Url(url)) => {
                let client_id = self.client_id.clone().filter(|id| !id.is_empty());
                faults.extend(client_id.is_none().then(|| wanted("client_id", "a client id")));
                faults.extend(self.client_secret.is_none().then(|| wanted("client_secret", "a secret")));
                if self.ca_file.is_some() {
                    let authorities = outbound::tls_config(self.ca_file.as_deref(), false);
                    faults.extend(authorities.err().map(|message| fault("sasl.ca_file", message)));
                }
                client_id.zip(self.client_secret.clone()).map(|(client_id, client_secret)| {
                    let (scope, ca_file) = (self.scope.clone(), self.ca_file.clone());
                    TokenEndpoint::Issuer(Issuer { url, client_id, client_secret, scope, ca_file })
                })
            }
        };
        match source {
            Some(source) if faults.is_empty() => Ok(Some(source)),
            _ => Err(faults),
        }
    }
}

enum EndpointUrl {
    File(PathBuf),
    Url(Uri),
}

/// What was found instead, if it is none.
fn place(text: &str) -> Result<EndpointUrl, &'static str> {
    if let Some(rest) = text.strip_prefix("file://") {
        let path = percent_decode_str(rest).decode_utf8().map_err(|_no_utf8| "one that is not UTF-8")?;
        return if path.starts_with('/') {
            Ok(EndpointUrl::File(path.into_owned().into()))
        } else {
            Err("no absolute path")
        };
    }
    // The parser drops what follows without a word.
    if text.contains('#') {
        return Err("a \"#\" in it");
    }
    let url = Uri::from_str(text).map_err(|_no_url| "something else")?;
    let authority = url.authority().ok_or("something else")?;
    if authority.as_str().contains('@') {
        return Err("a user or a password in it; use sasl.client_id and sasl.client_secret");
    }
    match url.scheme_str() {
        Some("https") => Ok(EndpointUrl::Url(url)),
        Some("http") if is_loopback(authority.host()) => Ok(EndpointUrl::Url(url)),
        Some("http") => Err("http:// to another machine, where anybody can read the secret and the token"),
        _ => Err("something else"),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Result<Option<TokenEndpoint>, Vec<String>> {
        let sasl: Sasl = serde_json::from_value(json).expect("sasl");
        sasl.parse().map_err(|faults| {
            assert!(faults.iter().all(|(_, message)| message.starts_with("expected") && !message.contains("canary")));
            faults.into_iter().map(|(key, _)| key).collect()
        })
    }

    #[test]
    fn a_name_and_a_password_are_wanted_but_for_a_token() {
        assert_eq!(parse(serde_json::json!({ "username": "u", "password": "p" })), Ok(None));
        assert_eq!(parse(serde_json::json!({})), Err(vec!["sasl.username".into(), "sasl.password".into()]));
        let both = serde_json::json!({
            "mechanism": "OAUTHBEARER", "username": "canary", "password": "canary", "token_endpoint": "file:///t",
        });
        assert_eq!(parse(both), Err(vec!["sasl.username".into(), "sasl.password".into()]));
        let other = serde_json::json!({
            "username": "u", "password": "p", "token_endpoint": "canary", "client_id": "canary", "scope": "canary",
        });
        let keys = ["sasl.token_endpoint", "sasl.client_id", "sasl.scope"];
        assert_eq!(parse(other), Err(keys.map(str::to_owned).to_vec()));
    }

    #[test]
    fn tokens_come_from_a_file_or_an_issuer() {
        let from =
            |endpoint: &str| parse(serde_json::json!({ "mechanism": "OAUTHBEARER", "token_endpoint": endpoint }));
        assert_eq!(from("file:///run/a%20token"), Ok(Some(TokenEndpoint::File("/run/a token".into()))));
        let credentials = vec!["sasl.client_id".to_owned(), "sasl.client_secret".to_owned()];
        for issuer in ["https://id.example.com/token", "http://localhost:1/", "http://[::1]:1/token?a=b"] {
            assert_eq!(from(issuer), Err(credentials.clone()), "{issuer}");
        }
        for wrong in [
            "",
            "canary",
            "/run/canary",
            "file://canary",
            "ftp://canary/",
            "http://canary/",
            "https://canary@id.example.com/token",
            "https://id.example.com/token#canary",
        ] {
            assert_eq!(from(wrong), Err(vec!["sasl.token_endpoint".to_owned()]), "{wrong}");
        }
        let whole = serde_json::json!({
            "mechanism": "OAUTHBEARER", "token_endpoint": "https://id.example.com/token", "client_id": "b",
            "client_secret": "s", "scope": "kafka",
        });
        let issuer = parse(whole).expect("no fault");
        assert!(matches!(&issuer, Some(TokenEndpoint::Issuer(issuer)) if issuer.client_id == "b"), "{issuer:?}");
        let file = serde_json::json!({
            "mechanism": "OAUTHBEARER", "token_endpoint": "file:///t", "client_secret": "canary", "ca_file": "canary",
        });
        assert_eq!(parse(file), Err(vec!["sasl.client_secret".into(), "sasl.ca_file".into()]));
    }
}
