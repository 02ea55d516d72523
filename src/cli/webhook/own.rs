//! Whether a URL for Sendbird is that of the bridge: compared with the configuration, and asked.
//!
//! No message shows the URL: it may hold the path secret.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper::header::ALLOW;
use tokio::time::timeout;

use crate::cli::client::{self, TlsArgs};
use crate::cli::{Failure, reach};
use crate::config::{Config, Loaded};
use crate::domain::secret::Secret;
use crate::outbound::causes;

/// How long the URL may take to answer. Sendbird waits one second.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Warns of a URL that is not the bridge's own, or does not answer as a bridge does.
pub(super) async fn warn(url: &Uri, loaded: &Loaded, probed: bool, tls: &TlsArgs) -> Result<(), Failure> {
    let difference = if loaded.is_given() { difference(url, &loaded.config) } else { None };
    if let Some(difference) = difference {
        eprintln!("warning: {difference}; unless a proxy rewrites it, each delivery is answered 404");
    }
    if probed {
        match probe(url, tls).await? {
            Ok(()) => eprintln!("a bridge answers at the URL"),
            Err(found) => eprintln!("warning: asked the URL from here: {found} (--probe=false does not ask)"),
        }
    }
    Ok(())
}

/// How the path differs from the configured one, if it does.
fn difference(url: &Uri, config: &Config) -> Option<String> {
    let (path, found) = (config.server.path.as_str(), url.path());
    let (base, without_slash) = (path.trim_end_matches('/'), found.trim_end_matches('/'));
    let secret = config.access.path_secret.as_ref().map(Secret::expose);
    let expected = secret.map_or_else(|| path.to_owned(), |secret| format!("{base}/{secret}"));
    let follows = found.strip_prefix(base).is_some_and(|rest| rest.starts_with('/'));
    if found == expected {
        None
    } else if without_slash == expected {
        Some("the URL ends with a slash, and the bridge's own does not".to_owned())
    } else if secret.is_some() && without_slash == base {
        Some("the URL has no path secret after server.path".to_owned())
    } else if secret.is_some() && follows {
        Some("what follows server.path in the URL is not the path secret".to_owned())
    } else if follows {
        Some(format!("something follows server.path (\"{path}\") in the URL, and no path secret is configured"))
    } else {
        Some(format!("the path of the URL is not server.path (\"{path}\")"))
    }
}

/// Asks the URL, by a GET, which a bridge answers 405 and nothing more; `Err` says what else was found.
async fn probe(url: &Uri, tls: &TlsArgs) -> Result<Result<(), String>, Failure> {
    let client = client::new(tls)?;
    let request = hyper::Request::get(url.clone()).body(Full::<Bytes>::default()).map_err(Failure::other)?;
    let response = match timeout(ANSWER_WITHIN, client.request(request)).await {
        Err(_elapsed) => return Ok(Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        Ok(Err(error)) if error.is_connect() => return Ok(Err(reach::unreached(url, &error))),
        Ok(Err(error)) => return Ok(Err(format!("the connection was lost: {}", causes(&error)))),
        Ok(Ok(response)) => response,
    };
    let takes_posts = response.headers().get(ALLOW).is_some_and(|allow| allow.as_bytes() == b"POST");
    Ok(match response.status().as_u16() {
        405 if takes_posts => Ok(()),
        404 => Err("answered 404: there is nothing at this path".to_owned()),
        status => Err(format!("answered {status}, and not as a bridge does (405, Allow: POST)")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_compared_with_the_configured_one() {
        let difference = |path: &str, secret: Option<&str>, url: &str| {
            let mut config = Config::default();
            config.server.path = path.into();
            config.access.path_secret = secret.map(Secret::new);
            let found = difference(&url.parse().unwrap(), &config);
            assert!(found.as_ref().is_none_or(|found| !found.contains("canary")), "{found:?}");
            found
        };
        for (path, secret, url) in [
            ("/hooks", None, "https://h/hooks"),
            ("/hooks", None, "https://h/hooks?a=b"),
            ("/", None, "https://h"),
            ("/hooks", Some("canary"), "https://h/hooks/canary"),
            ("/", Some("canary"), "https://h/canary"),
        ] {
            assert_eq!(difference(path, secret, url), None, "{url}");
        }
        for (path, secret, url, words) in [
            ("/hooks", None, "https://h/hook", "is not server.path"),
            ("/hooks", None, "https://h/hooks/", "ends with a slash"),
            ("/hooks", None, "https://h/hooks/canary", "no path secret is configured"),
            ("/hooks", None, "https://h/hooksx", "is not server.path"),
            ("/hooks", Some("canary"), "https://h/hooks", "has no path secret"),
            ("/hooks", Some("canary"), "https://h/hooks/", "has no path secret"),
            ("/hooks", Some("canary"), "https://h/hooks/canary/", "ends with a slash"),
            ("/hooks", Some("canary"), "https://h/hooks/other", "is not the path secret"),
        ] {
            let found = difference(path, secret, url);
            assert!(found.as_ref().is_some_and(|found| found.contains(words)), "{url}: {found:?}");
        }
    }
}
