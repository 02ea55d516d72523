//! `access.*`: the methods of authentication, and whether they are consistent.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warp::http::HeaderName;

use super::applications::{Applications, Beside, unlike_a_token};
use crate::domain::secret::Secret;
use crate::domain::text;
use crate::sendbird::api::ApplicationId;

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
    /// The master API tokens that signatures are made with; several at once while one replaces another. They sign for
    /// each application that has none of its own.
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
    pub fn check(&self, applications: &Applications) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let unsigned_is_fine = self.open && self.signature == SignatureMode::Required;
        if self.signature != SignatureMode::Off && !self.has_tokens(applications) && !unsigned_is_fine {
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
        faults.extend(self.signature_headers.iter().filter_map(|name| wrong_name("signature_headers", name)));
        faults.extend(unlike_a_token(&self.api_tokens).map(|message| ("api_tokens", message)));
        faults.extend(self.header.iter().flat_map(|header| self.check_header(header)));
        faults.extend(self.path_secret.iter().filter_map(check_path_secret));
        faults.extend(self.check_sources());
        for application in &self.applications {
            faults.extend(application.parse::<ApplicationId>().err().map(|message| ("applications", message)));
        }
        if self.signature != SignatureMode::Required && !self.has_authentication(applications) && !self.open {
            let message = "expected at least one authentication method, but found none: set access.signature to \"required\" with \
                           api_tokens, or a path_secret, a header or networks (access.open = true starts without)";
            faults.push(("signature", message.into()));
        }
        faults
    }

    fn check_header(&self, header: &SecretHeader) -> Vec<(&'static str, String)> {
        let mut faults: Vec<_> = wrong_name("header.name", &header.name).into_iter().collect();
        let of_signatures = |name: &String| name.eq_ignore_ascii_case(&header.name);
        if self.signature != SignatureMode::Off && self.signature_headers.iter().any(of_signatures) {
            let message = format!("expected another header than that of signatures, but found \"{}\"", header.name);
            faults.push(("header.name", message));
        }
        if let Some(found) = text::unlike_a_header_value(header.value.expose()) {
            faults.push(("header.value", format!("expected the value of a header, but found {found}")));
        }
        faults
    }

    /// A network of all addresses authenticates nobody, and with such a proxy everybody chooses a source address.
    fn check_sources(&self) -> Vec<(&'static str, String)> {
        let is_whole = |networks: &[Network]| networks.iter().any(|network| network.0.prefix_len() == 0);
        let mut faults = Vec::new();
        if is_whole(&self.networks) {
            let message = "expected networks that leave somebody out, but found one of all addresses; leave the list empty \
                           for any source, and use another authentication method";
            faults.push(("networks", message.into()));
        }
        if is_whole(&self.trusted_proxies) {
            let message = "expected the addresses of your proxies, but found a network of all addresses, with which \
                           every sender chooses its own source address";
            faults.push(("trusted_proxies", message.into()));
        }
        faults
    }

    /// The keys of the authentication methods that are configured.
    pub fn authentication_methods(&self, applications: &Applications) -> Vec<&'static str> {
        let methods = [
            ("signature", self.signature == SignatureMode::Required && self.has_tokens(applications)),
            ("path_secret", self.path_secret.is_some()),
            ("header", self.header.is_some()),
            ("networks", !self.networks.is_empty()),
        ];
        methods.into_iter().filter(|(_, is_configured)| *is_configured).map(|(key, _)| key).collect()
    }

    /// Whether any authentication method is configured.
    pub fn has_authentication(&self, applications: &Applications) -> bool {
        !self.authentication_methods(applications).is_empty()
    }

    /// Every fault of `applications.*`, as key and message.
    pub fn check_applications(&self, applications: &Applications) -> Vec<(String, String)> {
        let are_signatures_checked = self.signature != SignatureMode::Off;
        applications.check(&Beside { tokens: &self.api_tokens, allowed: &self.applications, are_signatures_checked })
    }

    /// Whether there is a token that a delivery can be signed with.
    pub(super) fn has_tokens(&self, applications: &Applications) -> bool {
        !self.api_tokens.is_empty() || applications.have_tokens()
    }
}

fn wrong_name(key: &'static str, name: &str) -> Option<(&'static str, String)> {
    if HeaderName::from_str(name).is_err() {
        return Some((key, format!("expected a header name, but found \"{name}\"")));
    }
    let message = "expected a header that clients and proxies pass on as it is, but found";
    text::is_of_the_connection(name).then(|| (key, format!("{message} \"{name}\"")))
}

fn check_path_secret(secret: &Secret) -> Option<(&'static str, String)> {
    let secret = secret.expose();
    let plain = secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    let message = if !plain {
        "expected letters, digits and \"-._~\" only, so that no client encodes it differently"
    } else if matches!(secret, "." | "..") {
        "expected more than dots, which clients take out of a path"
    } else {
        return None;
    };
    Some(("path_secret", message.into()))
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_no_network| format!("expected a network such as \"10.0.0.0/8\", but found \"{text}\""))?;
        let (address, bits) = (network.addr(), network.prefix_len());
        if let (IpAddr::V6(v6), Some(bits)) = (address, bits.checked_sub(96))
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Err(format!(
                "expected an IPv4 network as IPv4, such as \"{v4}/{bits}\", because source addresses are compared so, but \
                 found \"{text}\""
            ));
        }
        if network.trunc() != network {
            let whole = network.trunc();
            return Err(format!(
                "expected a network without host bits, such as \"{whole}\", or the address \"{address}\", but found \
                 \"{text}\""
            ));
        }
        if bits > 0 && (address.is_unspecified() || address.is_multicast()) {
            return Err(format!("expected addresses that a sender can have, but found \"{text}\""));
        }
        Ok(Self(network))
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

    fn applications(toml: &str) -> Applications {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(toml)).extract().unwrap()
    }

    #[test]
    fn a_network_that_matches_nobody_or_everybody_is_refused() {
        for (text, hint) in [
            ("10.1.2.3/8", "\"10.0.0.0/8\", or the address \"10.1.2.3\""),
            ("2001:db8::1/32", "\"2001:db8::/32\""),
            ("10.0.0.0/0", "\"0.0.0.0/0\""),
            ("::ffff:10.0.0.0/104", "\"10.0.0.0/8\""),
            ("::ffff:10.1.2.3", "\"10.1.2.3/32\""),
            ("0.0.0.0", "can have"),
            ("::", "can have"),
            ("224.0.0.0/4", "can have"),
            ("ff02::/16", "can have"),
            ("10.0.0.0-10.0.0.9", "such as"),
            ("10.0.0.0/33", "such as"),
        ] {
            let message = text.parse::<Network>().expect_err(text);
            assert!(message.contains(hint) && message.contains("expected"), "{text}: {message}");
        }
        for fine in ["10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "::1", "fe80::/10", "0.0.0.0/0", "::/0"] {
            assert!(fine.parse::<Network>().is_ok(), "{fine}");
        }
        let keys = |toml: &str| {
            settings(toml).check(&Applications::default()).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(keys("api_tokens = ['t']\nnetworks = ['0.0.0.0/0']"), ["networks"]);
        assert_eq!(keys("api_tokens = ['t']\ntrusted_proxies = ['::/0']"), ["trusted_proxies"]);
    }

    #[test]
    fn what_no_delivery_can_carry_is_refused() {
        let keys = |toml: &str| {
            let faults = settings(&format!("api_tokens = ['t']\n{toml}")).check(&Applications::default());
            assert!(faults.iter().all(|(_, message)| !message.contains("canary")), "{faults:?}");
            faults.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for (toml, key) in [
            ("header = { name = 'Host', value = 'v' }", "header.name"),
            ("header = { name = 'transfer-encoding', value = 'v' }", "header.name"),
            ("header = { name = 'X-Sendbird-Signature', value = 'v' }", "header.name"),
            ("header = { name = 'x', value = 'canary\u{fc}' }", "header.value"),
            ("header = { name = 'x', value = ' canary' }", "header.value"),
            ("header = { name = 'x', value = \"canary\\nx\" }", "header.value"),
            ("signature_headers = ['content-length']", "signature_headers"),
            ("path_secret = '..'", "path_secret"),
            ("applications = ['A-1 ']", "applications"),
            ("applications = ['']", "applications"),
        ] {
            assert_eq!(keys(toml), [key], "{toml}");
        }
        assert_eq!(settings("api_tokens = ['Token: t']").check(&Applications::default())[0].0, "api_tokens");
        assert!(keys("header = { name = 'x', value = 'Basic dTpw ' }") == ["header.value"]);
        assert!(keys("header = { name = 'authorization', value = 'Basic dTpw' }\napplications = ['A-1']").is_empty());
    }

    #[test]
    fn no_authentication_is_a_fault_unless_open() {
        let keys = |toml: &str| {
            settings(toml).check(&Applications::default()).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
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
        // Tokens of applications are as good, and a rate is none.
        for (table, expected) in [("A.api_tokens = ['t']", &[][..]), ("A.rate = 1", &["api_tokens"])] {
            let faults = settings("").check(&applications(table));
            assert_eq!(faults.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), expected, "{table}");
        }
        let optional = settings("signature = 'if-present'").check(&applications("A.api_tokens = ['t']"));
        assert_eq!(optional.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), ["signature"]);
        assert_eq!(
            keys("signature_headers = ['a b']\npath_secret = 'a/b'\nheader = { name = '', value = 'v' }"),
            ["api_tokens", "signature_headers", "header.name", "path_secret"]
        );
    }
}
