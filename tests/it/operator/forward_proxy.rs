//! Requests that go out through the proxy that the environment names.

use crate::support::bridge::{Config, PATH, TOKEN};
use crate::support::certificates::Authority;
use crate::support::forward_proxy::ForwardProxy;
use crate::support::process::{Ended, Process, Stdout, program};

/// Runs `send` towards an `https://` URL with these variables.
fn send(url: &str, ca_file: &str, variables: &[(&str, &str)]) -> Ended {
    let mut command = program();
    command.args(["send", "--token", TOKEN, "--url", url, "--ca-file", ca_file]);
    command.envs(variables.iter().copied());
    Process::start(command, Stdout::Read).wait()
}

#[test]
fn https_requests_go_through_the_proxy_of_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(&dir.path().join("certificates"));
    let server = authority.issue("127.0.0.1");
    let config = Config::new()
        .set("server.tls.cert_file", &format!("'{}'", server.cert_file.display()))
        .set("server.tls.key_file", &format!("'{}'", server.key_file.display()));
    let bridge = config.start();
    let (url, ca) = (format!("https://{}{PATH}", bridge.webhook), authority.ca_file.display().to_string());
    let proxy = ForwardProxy::start();
    let seen = || proxy.connects(bridge.webhook);

    assert_eq!(send(&url, &ca, &[]).code(), Some(0));
    assert_eq!(seen(), 0);
    for (count, name) in [(1, "HTTPS_PROXY"), (2, "https_proxy"), (3, "ALL_PROXY")] {
        let ended = send(&url, &ca, &[(name, &proxy.url())]);
        assert_eq!((ended.code(), seen()), (Some(0), count), "{name}: {}", ended.stderr());
    }
    for names in ["127.0.0.1", "10.0.0.0/8, 127.0.0.0/8"] {
        assert_eq!(send(&url, &ca, &[("HTTPS_PROXY", &proxy.url()), ("NO_PROXY", names)]).code(), Some(0));
        assert_eq!(seen(), 3, "{names}");
    }

    // What does not work is said, with the proxy's address and without its password.
    let wrong = proxy.url_with("canary-wrong");
    let nobody = "http://bridge:canary-wrong@127.0.0.1:1";
    for (value, expected) in [(wrong.as_str(), "proxy 127.0.0.1"), (nobody, "proxy 127.0.0.1:1")] {
        let ended = send(&url, &ca, &[("HTTPS_PROXY", value)]);
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
        assert!(ended.stderr().contains(expected) && !ended.stderr().contains("canary"), "{}", ended.stderr());
    }
    for (value, expected) in [
        ("socks5://127.0.0.1:1", "expected an http:// URL of a proxy in HTTPS_PROXY"),
        ("canary proxy", "expected http://host:port in HTTPS_PROXY"),
    ] {
        let ended = send(&url, &ca, &[("HTTPS_PROXY", value)]);
        assert_eq!(ended.code(), Some(1), "never without the proxy");
        assert!(ended.stderr().contains(expected) && !ended.stderr().contains("canary"), "{}", ended.stderr());
    }
    assert_eq!(bridge.metric("sendbird_bridge_deliveries_total", &[("outcome", "stored")]), 6.0);
}

#[test]
fn http_requests_are_never_proxied() {
    let bridge = Config::new().start();
    let mut command = program();
    command.args(["send", "--token", TOKEN, "--url", &bridge.url()]);
    command.envs([("HTTP_PROXY", "http://127.0.0.1:1"), ("ALL_PROXY", "http://127.0.0.1:1")]);
    assert_eq!(Process::start(command, Stdout::Read).wait().code(), Some(0));
}
