//! An issuer of tokens that Kafka believes: OAuth 2.0 over TLS, by a certified library (`tests/issuer`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::broker::secured::PASSWORD;
use super::certificates::Authority;
use super::eventually;
use super::http::Request;
use super::process::{Process, Stdout};
use super::repository::repository;
use super::tls::connect;

/// What it calls itself in its tokens.
pub(crate) const NAME: &str = "https://issuer.tests";
/// Whom its tokens are for.
pub(crate) const AUDIENCE: &str = "kafka";
/// What its tokens may be asked for.
pub(crate) const SCOPE: &str = "calls:write";
/// Who may ask it for tokens, with the password of all; a name that has to be encoded on its way.
pub(crate) const CLIENT: &str = "the bridge/1";

/// Node and the program's directory, installed if they are missing.
fn program() -> &'static (PathBuf, PathBuf) {
    static PROGRAM: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let output = Command::new(repository("tests/tools/issuer")).output().unwrap();
        assert!(output.status.success(), "tests/tools/issuer: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let mut paths = said.lines().map(PathBuf::from);
        (paths.next().expect("node"), paths.next().expect("a directory"))
    })
}

/// A running issuer.
pub(crate) struct Issuer {
    pub(crate) process: Process,
    pub(crate) authority: Authority,
    port: u16,
    /// Goes with this.
    dir: TempDir,
}

impl Issuer {
    /// One whose tokens hold for so many seconds.
    #[track_caller]
    pub(crate) fn start(seconds: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-issuer-").tempdir().unwrap();
        let authority = Authority::new(dir.path());
        let files = authority.issue("127.0.0.1");
        let (node, home) = program();
        let mut command = Command::new(node);
        command.arg(home.join("issuer.mjs")).args([files.cert_file, files.key_file, dir.path().join("jwks")]);
        command.args([AUDIENCE, &seconds.to_string(), &format!("{CLIENT}={PASSWORD}")]);
        let mut process = Process::start(command, Stdout::Read);
        let (said, errors) = (process.stdout(), process.stderr());
        let mut port = None;
        eventually("the issuer listens", || {
            port = said.so_far().first().and_then(|line| line.strip_prefix("listens on ")?.parse().ok());
            assert!(port.is_some() || process.is_running(), "it ended: {}", errors.so_far().join("\n"));
            port.is_some()
        });
        Self { process, authority, port: port.unwrap(), dir }
    }

    /// Where it gives tokens.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}/token", self.port)
    }

    /// The public half of what it signs with, a JWKS.
    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.path().join("jwks")
    }

    /// How many tokens it has given for our scope.
    pub(crate) fn given(&self) -> usize {
        let line = format!("gave {CLIENT} a token for {SCOPE}");
        self.process.stdout().so_far().iter().filter(|said| **said == line).count()
    }

    /// Puts a new token into the file, as a sidecar does, and gives it.
    pub(crate) fn renew(&self, file: &Path) -> String {
        let ask = Request::post("/token")
            .header("authorization", &format!("Basic {}", self.credentials()))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(b"grant_type=client_credentials");
        let address = ([127, 0, 0, 1], self.port).into();
        let answer = connect(address, &self.authority.ca_file, None).unwrap().send(&ask);
        let token = answer.json()["access_token"].as_str().expect("a token").to_owned();
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{token}\n")).unwrap();
        std::fs::rename(new, file).unwrap();
        token
    }

    fn credentials(&self) -> String {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let name = percent_encoding::utf8_percent_encode(CLIENT, percent_encoding::NON_ALPHANUMERIC);
        BASE64_STANDARD.encode(format!("{name}:{PASSWORD}"))
    }
}
