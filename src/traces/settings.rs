//! `traces.*`: where spans go, and of which deliveries there are some.

use std::path::PathBuf;
use std::str::FromStr;

use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use warp::http::uri::{Authority, PathAndQuery, Scheme};
use warp::http::{HeaderName, HeaderValue, Uri};

use crate::domain::secret::Secret;
use crate::domain::text;
use crate::outbound;

/// What OTLP puts behind the address of a collector.
const PATH: &str = "/v1/traces";

/// `traces.*`: spans by OTLP. Without this table there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The collector, as OTLP over HTTP has it: `http://host:4318`; `/v1/traces` follows.
    pub endpoint: String,
    /// A header that the collector wants to see, such as a key; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// A PEM file with the only certificate authorities that are trusted; default: the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Which part of the deliveries that bring no trace begin one, 0 to 1. One that is brought decides by itself.
    #[serde(default = "all")]
    pub sample: f64,
    /// What the spans say that they are of.
    #[serde(default = "program")]
    pub service_name: String,
}

/// A header of each request to the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The header's name.
    pub name: String,
    /// Its value.
    pub value: Secret,
}

fn all() -> f64 {
    1.0
}

fn program() -> String {
    env!("CARGO_PKG_NAME").to_owned()
}

impl Settings {
    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        faults.extend(self.url().err().map(|message| ("endpoint", message)));
        faults.extend(self.header().err());
        if self.url().is_ok() {
            faults.extend(self.tls().err().map(|message| ("ca_file", message)));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            faults.push(("sample", format!("expected 0 to 1, but found {}", self.sample)));
        }
        if self.service_name.is_empty() || self.service_name.len() > 255 {
            let length = self.service_name.len();
            faults.push(("service_name", format!("expected a name of 1 to 255 bytes, but found {length}")));
        }
        faults
    }

    /// The certificate authorities that are trusted for the collector.
    ///
    /// # Errors
    /// No authority can be had.
    pub(super) fn tls(&self) -> Result<ClientConfig, String> {
        outbound::tls_config(self.ca_file.as_deref(), self.endpoint.starts_with("https:"))
    }

    /// Where spans are sent.
    ///
    /// # Errors
    /// What is wrong with `endpoint`, without a password that may stand in it.
    pub(super) fn url(&self) -> Result<Uri, String> {
        let expected = |found: &str| format!("expected a URL such as \"http://collector:4318\", but found {found}");
        // The parser drops it without a word.
        if self.endpoint.contains('#') {
            return Err(expected("one with a \"#\""));
        }
        let parts = Uri::from_str(&self.endpoint).map_err(|error| expected(&error.to_string()))?.into_parts();
        let (scheme, authority) = match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority)) if [Scheme::HTTP, Scheme::HTTPS].contains(&scheme) => (scheme, authority),
            _ => return Err(expected("one that does not begin with http:// or https:// and a host")),
        };
        if authority.as_str().contains('@') {
            return Err(expected("a user or a password in it; use traces.header"));
        }
        let given = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if given.query().is_some() {
            return Err(expected("one with a query"));
        }
        let path = given.path().trim_end_matches('/');
        let path = if path.ends_with(PATH) { path.to_owned() } else { format!("{path}{PATH}") };
        whole(scheme, authority, &path).map_err(|error| expected(&error.to_string()))
    }

    /// The header, ready to be sent and never to be shown.
    ///
    /// # Errors
    /// The key and what is wrong with it.
    pub(super) fn header(&self) -> Result<Option<(HeaderName, HeaderValue)>, (&'static str, String)> {
        let Some(header) = &self.header else { return Ok(None) };
        let name = HeaderName::from_str(&header.name)
            .ok()
            .filter(|name| !text::is_of_the_connection(name.as_str()))
            .ok_or_else(|| ("header.name", format!("expected a header of your own, but found \"{}\"", header.name)))?;
        let unlike = |found| ("header.value", format!("expected the value of a header, but found {found}"));
        if let Some(found) = text::unlike_a_header_value(header.value.expose()) {
            return Err(unlike(found));
        }
        let mut value = HeaderValue::from_str(header.value.expose()).map_err(|_invalid| unlike("something else"))?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

fn whole(scheme: Scheme, authority: Authority, path: &str) -> Result<Uri, warp::http::Error> {
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &str) -> Settings {
        let endpoint = endpoint.to_owned();
        Settings { endpoint, header: None, ca_file: None, sample: 1.0, service_name: "bridge".into() }
    }

    #[test]
    fn an_endpoint_is_completed_as_otlp_has_it() {
        for (endpoint, url) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://otlp.example.com/otlp", "https://otlp.example.com/otlp/v1/traces"),
            ("https://[::1]:4318/v1/traces", "https://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(settings(endpoint).url().unwrap(), url);
        }
    }

    #[test]
    fn every_fault_is_named_and_no_secret() {
        for endpoint in [
            "",
            "collector:4318",
            "ftp://collector",
            "/v1/traces",
            "http://a/?canary",
            "http://u:canary@a",
            "http://a/#canary",
        ] {
            let faults = settings(endpoint).check();
            assert_eq!(faults.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["endpoint"], "{endpoint}");
            assert!(faults[0].1.contains("expected a URL") && !faults[0].1.contains("canary"), "{faults:?}");
        }
        let header = |name: &str, value: &str| {
            let header = Header { name: name.into(), value: Secret::new(value) };
            Settings { header: Some(header), ..settings("http://a") }.check()
        };
        assert!(header("authorization", "Bearer k").is_empty());
        assert_eq!(header("a b", "k")[0].0, "header.name");
        assert_eq!(header("content-length", "1")[0].0, "header.name");
        assert_eq!(header("x", "canary\n")[0].0, "header.value");
        assert_eq!(header("x", " canary")[0].0, "header.value");
        assert!(!header("x", "canary\n")[0].1.contains("canary"));
        for sample in [-0.1, 1.1, f64::NAN] {
            assert_eq!(Settings { sample, ..settings("http://a") }.check()[0].0, "sample");
        }
        let ca_file = Some("/nonexistent/ca.pem".into());
        assert_eq!(Settings { ca_file, ..settings("https://a") }.check()[0].0, "ca_file");
        assert_eq!(Settings { service_name: String::new(), ..settings("http://a") }.check()[0].0, "service_name");
    }
}
