//! `server.*`: where deliveries come in, and whether the keys make sense.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::domain::units::{self, Size, Span};
use crate::http::tls;

/// `server.*`: where deliveries come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The address and port of the webhook.
    #[serde(deserialize_with = "units::address")]
    pub listen: SocketAddr,
    /// Its path.
    pub path: String,
    /// The largest body taken.
    pub max_body: Size,
    /// How many connections may be open; one more is answered 503 and closed. Fewer where there are too few file
    /// descriptors.
    pub max_connections: usize,
    /// From the end of a delivery's head to its answer, at most; Sendbird waits one second.
    pub answer_deadline: Span,
    /// How long a connection may be idle. Longer than the load balancer in front: if the bridge closed first, the load
    /// balancer could send a request into a closed connection.
    pub idle_timeout: Span,
    /// How long a connection may stay idle once the bridge is stopping. Its sender may already have sent the next request; the answer
    /// says that it was the last.
    pub linger: Span,
    /// A path that answers 200 to GET and HEAD while the bridge is ready, and otherwise 503; empty for none.
    pub health_path: String,
    /// Whether each connection begins with a PROXY protocol header, which is trusted if it comes from one of
    /// `access.trusted_proxies`.
    pub proxy_protocol: bool,
    /// The listener's certificate; without one it speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            path: "/webhooks/sendbird".into(),
            max_body: Size::kib(256),
            max_connections: 4096,
            answer_deadline: Span::from_millis(800),
            idle_timeout: Span::from_secs(90),
            linger: Span::from_secs(1),
            health_path: "/healthz".into(),
            proxy_protocol: false,
            tls: None,
        }
    }
}

impl Settings {
    /// Every fault, as key and message; `has_proxies` says whether there are trusted ones.
    pub fn check(&self, has_proxies: bool) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        for (key, path, is_optional) in [("path", &self.path, false), ("health_path", &self.health_path, true)] {
            let is_none = is_optional && path.is_empty();
            if !is_none && !is_path(path) {
                let example = if is_optional { "/healthz" } else { "/webhooks/sendbird" };
                faults.push((key, format!("expected a path such as \"{example}\", but found \"{path}\"")));
            }
        }
        if !(Size::kib(1)..=Size::mib(16)).contains(&self.max_body) {
            faults.push(("max_body", format!("expected 1KiB to 16MiB, but found {}", self.max_body)));
        }
        if !(1..=1_000_000).contains(&self.max_connections) {
            faults.push(("max_connections", format!("expected 1 to 1000000, but found {}", self.max_connections)));
        }
        if !(Span::from_millis(50)..=Span::from_secs(10)).contains(&self.answer_deadline) {
            faults.push(("answer_deadline", format!("expected 50ms to 10s, but found {}", self.answer_deadline)));
        }
        if !(Span::from_secs(5)..=Span::from_secs(3600)).contains(&self.idle_timeout) {
            faults.push(("idle_timeout", format!("expected 5s to 1h, but found {}", self.idle_timeout)));
        }
        if self.linger > Span::from_secs(3) {
            faults.push(("linger", format!("expected 0s to 3s, but found {}", self.linger)));
        }
        if self.proxy_protocol && !has_proxies {
            let message = "expected the load balancer's networks in access.trusted_proxies, but found none: \
                           its PROXY protocol headers would not be trusted";
            faults.push(("proxy_protocol", message.into()));
        }
        faults.extend(self.tls.iter().flat_map(tls::Settings::check));
        faults
    }
}

fn is_path(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    let slashes = path.contains("//") || (path.len() > 1 && path.ends_with('/'));
    // Clients take these out of a path before they send it.
    let dots = path.split('/').any(|segment| matches!(segment, "." | ".."));
    path.starts_with('/') && !slashes && !dots && path.bytes().all(plain)
}
