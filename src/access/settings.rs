//! `access.*`: the methods of authentication, and whether they are consistent.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warp::http::HeaderName;

use crate::domain::secret::Secret;

/// What is done about the signature header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureMode {
    /// A delivery without a right signature is refused.
    #[default]
    Required,
    /// A wrong signature is refused, a missing one is not. This alone is no authentication.
    IfPresent,
    /// Signatures are not looked at.
    Off,
}

/// A header that each delivery must carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretHeader {
    /// The header's name.
    pub name: String,
    /// Its value.
    pub value: Secret,
}

/// A network in CIDR notation; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

/// `access.*`: authentication of deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `required`, `if-present` or `off`.
    pub signature: SignatureMode,
    /// The master API tokens that signatures are made with; several at once while one replaces another.
    pub api_tokens: Vec<Secret>,
    /// The headers that a signature may come in.
    pub signature_headers: Vec<String>,
    /// A secret last segment of the path: deliveries then go to `{server.path}/{path_secret}`.
    pub path_secret: Option<Secret>,
    /// A header that each delivery must carry.
    pub header: Option<SecretHeader>,
    /// The networks that deliveries may come from; empty means any.
    pub networks: Vec<Network>,
    /// The proxies whose X-Forwarded-For, and whose PROXY protocol header, is trusted when looking for the source address.
    pub trusted_proxies: Vec<Network>,
    /// The `application_id`s that deliveries may name; empty means any.
    pub applications: Vec<String>,
    /// Deliveries per second that one source may send before it is answered 429; none means no limit. A source is an
    /// IPv4 address or an IPv6 network of 64 bits. Leave it off behind a proxy that is not in `trusted_proxies`: all
    /// senders are one there.
    pub rate_per_source: Option<NonZeroU32>,
    /// Starts without any authentication. For trying things out only.
    pub open: bool,
}

impl Network {
    /// The network itself.
    pub(super) fn net(&self) -> IpNet {
        self.0
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            signature: SignatureMode::default(),
            api_tokens: Vec::new(),
            signature_headers: vec!["x-sendbird-signature".into()],
            path_secret: None,
            header: None,
            networks: Vec::new(),
            trusted_proxies: Vec::new(),
            applications: Vec::new(),
            rate_per_source: None,
            open: false,
        }
    }
}

impl Settings {
    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let unsigned_is_fine = self.open && self.signature == SignatureMode::Required;
        if self.signature != SignatureMode::Off && self.api_tokens.is_empty() && !unsigned_is_fine {
            let mode = if self.signature == SignatureMode::Required { "required" } else { "if-present" };
            let message = format!(
                "expected at least one token because access.signature is \"{mode}\", but found none; \
                 give a token, or set access.signature to \"off\" and use another authentication method"
            );
            faults.push(("api_tokens", message));
        }
        if self.signature != SignatureMode::Off && self.signature_headers.is_empty() {
            faults.push(("signature_headers", "expected at least one header name, but found none".into()));
        }
        for header in &self.signature_headers {
            if HeaderName::from_str(header).is_err() {
                faults.push(("signature_headers", format!("expected a header name, but found \"{header}\"")));
            }
        }
        if let Some(header) = &self.header
            && HeaderName::from_str(&header.name).is_err()
        {
            faults.push(("header.name", format!("expected a header name, but found \"{}\"", header.name)));
        }
        if let Some(secret) = &self.path_secret
            && !secret.expose().bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
        {
            let message = "expected letters, digits and \"-._~\" only, so that no client encodes it differently";
            faults.push(("path_secret", message.into()));
        }
        if self.signature != SignatureMode::Required && !self.has_authentication() && !self.open {
            let message = "expected at least one authentication method, but found none: set access.signature to \"required\" with \
                           api_tokens, or a path_secret, a header or networks (access.open = true starts without)";
            faults.push(("signature", message.into()));
        }
        faults
    }

    /// Whether any authentication method is configured.
    pub fn has_authentication(&self) -> bool {
        (self.signature == SignatureMode::Required && !self.api_tokens.is_empty())
            || self.path_secret.is_some()
            || self.header.is_some()
            || !self.networks.is_empty()
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(|network| Self(network.trunc()))
            .map_err(|_no_network| format!("expected a network such as \"10.0.0.0/8\", but found \"{text}\""))
    }
}

impl Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "a network in CIDR notation" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str) -> Settings {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(toml)).extract().unwrap()
    }

    #[test]
    fn no_authentication_is_a_fault_unless_open() {
        let keys = |toml: &str| settings(toml).check().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(""), ["api_tokens"]);
        assert_eq!(keys("signature = 'off'"), ["signature"]);
        assert_eq!(keys("signature = 'if-present'\napi_tokens = ['t']"), ["signature"]);
        for fine in [
            "api_tokens = ['t']",
            "open = true",
            "signature = 'off'\nopen = true",
            "signature = 'off'\npath_secret = 's'",
            "signature = 'off'\nheader = { name = 'x', value = 'v' }",
            "signature = 'off'\nnetworks = ['10.1.2.3']",
        ] {
            assert_eq!(keys(fine), [""; 0], "{fine}");
        }
        assert_eq!(
            keys("signature_headers = ['a b']\npath_secret = 'a/b'\nheader = { name = '', value = 'v' }"),
            ["api_tokens", "signature_headers", "header.name", "path_secret"]
        );
    }
}
