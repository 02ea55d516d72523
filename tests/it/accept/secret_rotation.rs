//! Secrets that change under a running bridge.

use std::fs;
use std::path::PathBuf;

use crate::support::bridge::{Bridge, Config, PATH, signed_by};
use crate::support::eventually;
use crate::support::http::Request;
use crate::support::samples::{APPLICATION, dial};

struct Rotation {
    bridge: Bridge,
    config: Config,
}

impl Rotation {
    fn start(config: Config, secrets: &[(&str, &str)]) -> Self {
        let config = secrets.iter().fold(config, |config, (key, text)| {
            let file = file(&config, key);
            fs::write(&file, text).unwrap();
            config.set(&format!("{key}_file"), &format!("'{}'", file.display()))
        });
        Self { bridge: config.start(), config }
    }

    /// Puts another secret into the place of one, as a mount does.
    fn rotate(&self, key: &str, text: &str) {
        let new = self.config.dir().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, file(&self.config, key)).unwrap();
    }

    fn status(&self, token: &str) -> u16 {
        signed_by(token, &dial("call", 1)).send(self.bridge.webhook).status
    }

    fn said(&self, what: &str) -> usize {
        self.bridge.log().so_far().iter().filter(|line| line.contains(what)).count()
    }
}

fn file(config: &Config, key: &str) -> PathBuf {
    config.dir().join(key)
}

#[test]
fn a_token_is_replaced_without_a_restart() {
    let tokens = "access.api_tokens";
    let it = Rotation::start(Config::new().unset(tokens), &[(tokens, "first\n")]);
    assert_eq!((it.status("first"), it.status("second")), (200, 401));
    it.rotate(tokens, "second\nfirst\n");
    eventually("both are taken", || it.status("second") == 200);
    assert_eq!(it.status("first"), 200);
    it.rotate(tokens, "second\n");
    eventually("the first is no longer taken", || it.status("first") == 401);
    assert_eq!(it.status("second"), 200);

    // What holds no token changes nothing, and is logged once.
    it.rotate(tokens, "\n");
    eventually("that is logged", || it.said("cannot use the renewed secret") == 1);
    fs::remove_file(file(&it.config, tokens)).unwrap();
    eventually("and so is this", || it.said("cannot use the renewed secret") == 2);
    assert_eq!((it.status("second"), it.status("")), (200, 401));
    assert_eq!(it.said("using the renewed secret"), 2);
    let log = it.bridge.log().so_far().join("\n");
    assert!(!log.contains("second") && !log.contains("first"), "{log}");
    assert_eq!(it.bridge.stop().code(), Some(0));
}

#[test]
fn the_token_of_an_application_is_replaced_without_a_restart() {
    let (tokens, own) = ("access.api_tokens", format!("applications.{APPLICATION}.api_tokens"));
    let it = Rotation::start(Config::new().unset(tokens), &[(tokens, "shared\n"), (&own, "first\n")]);
    assert_eq!((it.status("first"), it.status("second"), it.status("shared")), (200, 401, 401));
    it.rotate(&own, "second\nfirst\n");
    eventually("both are taken", || it.status("second") == 200);
    assert_eq!((it.status("first"), it.status("shared")), (200, 401));
    it.rotate(&own, "second\n");
    eventually("the first is no longer taken", || it.status("first") == 401);
    // One that would open deliveries of others too changes nothing, wherever it comes from.
    it.rotate(&own, "shared\n");
    eventually("that is logged", || it.said("cannot use the renewed secret") == 1);
    it.rotate(tokens, "other\nsecond\n");
    eventually("and so is this", || it.said("cannot use the renewed secret") == 2);
    assert_eq!((it.status("second"), it.status("shared"), it.status("other")), (200, 401, 401));
    assert_eq!(it.said("using the renewed secret"), 2);
}

#[test]
fn other_secrets_and_the_admin_token_are_replaced_too() {
    let config =
        Config::new().unset("access.api_tokens").set("access.signature", "'off'").set("access.header.name", "'x-key'");
    let secrets = [("access.path_secret", "path-1"), ("access.header.value", "header-1"), ("admin.token", "admin-1")];
    let it = Rotation::start(config, &secrets);
    let deliver = |path: &str, header: &str| {
        let request = Request::post(&format!("{PATH}/{path}")).header("x-key", header).body(&dial("call", 1));
        request.send(it.bridge.webhook).status
    };
    let operate = |token: &str| {
        let request = Request::get("/status").header("authorization", &format!("Bearer {token}"));
        request.send(it.bridge.admin).status
    };
    assert_eq!((deliver("path-1", "header-1"), operate("admin-1")), (200, 200));

    it.rotate("access.header.value", "header-2");
    eventually("the new header is taken", || deliver("path-1", "header-2") == 200);
    assert_eq!(deliver("path-1", "header-1"), 401);
    it.rotate("access.path_secret", "path-2");
    eventually("the new path is taken", || deliver("path-2", "header-2") == 200);
    assert_eq!(deliver("path-1", "header-2"), 404);
    it.rotate("admin.token", "admin-2");
    eventually("the new token is taken", || operate("admin-2") == 200);
    assert_eq!(operate("admin-1"), 401);

    // One that no client could send as it is.
    it.rotate("access.path_secret", "path/3");
    eventually("that is logged", || it.said("cannot use the renewed secret") == 1);
    assert_eq!(deliver("path-2", "header-2"), 200);
}

#[test]
fn a_file_that_comes_back_as_it_was_is_no_renewal() {
    let tokens = "access.api_tokens";
    let it = Rotation::start(Config::new().unset(tokens), &[(tokens, "first\n")]);
    let back = || it.said("secret file holds the secret in use again");
    fs::remove_file(file(&it.config, tokens)).unwrap();
    eventually("it is missed", || it.said("cannot use the renewed secret") == 1);
    it.rotate(tokens, "first");
    eventually("it is found again", || back() == 1);
    it.rotate(tokens, "\n");
    eventually("a file without a token is logged", || it.said("cannot use the renewed secret") == 2);
    it.rotate(tokens, "first\n");
    eventually("and that it holds one again", || back() == 2);
    assert_eq!(it.said("using the renewed secret"), 0);
    assert_eq!((it.status("first"), it.status("second")), (200, 401));
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_secret_that_needs_a_restart_says_so() {
    let config = Config::new().set("sinks.rabbit.type", "'rabbitmq'");
    let url = "sinks.rabbit.url";
    let it = Rotation::start(config, &[(url, "amqp://user:canary-1@127.0.0.1:1/%2f")]);
    it.rotate(url, "amqp://user:canary-2@127.0.0.1:1/%2f");
    let logged = || it.said("secret file has changed; restart the bridge to use it");
    eventually("it is logged", || logged() == 1);
    it.rotate(url, "amqp://user:canary-1@127.0.0.1:1/%2f");
    eventually("that needs none any more", || it.said("secret file holds the secret in use again") == 1);
    assert_eq!((logged(), it.said("canary")), (1, 0));
}

/// What only the clients of sinks read. Whether they do as is said here is seen in `authentication`, with real brokers.
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
#[test]
fn a_change_of_what_a_sinks_client_reads_says_when_it_is_taken() {
    const NEXT: &str = "the next connection uses it";
    const RESTART: &str = "restart the bridge to use it";
    let sinks = [
        ("kafka", "brokers", "['127.0.0.1:1']", RESTART),
        ("rabbitmq", "url", "'amqps://127.0.0.1:1'", NEXT),
        ("nats", "servers", "['nats://127.0.0.1:1']", NEXT),
    ];
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut config = Config::new();
    let mut files = Vec::new();
    for (kind, address, nowhere, when) in sinks {
        config = config.set(&format!("sinks.{kind}.type"), &format!("'{kind}'"));
        config = config.set(&format!("sinks.{kind}.{address}"), nowhere);
        for part in ["ca_file", "cert_file", "key_file"] {
            let key = format!("sinks.{kind}.tls.{part}");
            let path = file(&config, &key);
            let pem = if part == "key_file" { pair.signing_key.serialize_pem() } else { pair.cert.pem() };
            fs::write(&path, pem).unwrap();
            config = config.set(&key, &format!("'{}'", path.display()));
            files.push((key, when));
        }
    }
    let creds = "sinks.nats.credentials.creds";
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\ncanary-1\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n\
         ------END USER NKEY SEED------\n"
    );
    let it = Rotation::start(config, &[(creds, &text)]);
    let said = |key: &str, what: &str| {
        let log = it.bridge.log().so_far();
        log.iter().filter(|line| line.contains(&format!("\"{key}\"")) && line.contains(what)).count()
    };
    for (key, when) in &files {
        it.rotate(key, "canary-2");
        eventually(&format!("{key}: it is logged"), || said(key, when) == 1);
    }
    let (away, _) = &files[0];
    fs::remove_file(file(&it.config, away)).unwrap();
    eventually("a missing file is logged", || said(away, "cannot read a file of a sink") == 1);
    it.rotate(away, "canary-2");
    eventually("and that it is back", || said(away, "readable again and unchanged") == 1);
    it.rotate(creds, "canary-2");
    eventually("a credentials file is logged", || said(creds, "restart the bridge to use it") == 1);
    for (key, _) in &files {
        assert_eq!(said(key, "has changed"), 1, "{key}: once");
    }
    assert_eq!(it.said("canary"), 0);
}
