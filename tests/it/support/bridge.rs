//! A bridge as a user would start it: a configuration file, a directory, a process.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use super::http::{Connection, Request, Response};
use super::metrics::Metrics;
use super::process::{Ended, Lines, Process, Stdout, limited, mounted, program};
use super::{PATIENCE, eventually, schemas};

/// The token that deliveries are signed with.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

/// Where deliveries go.
pub(crate) const PATH: &str = "/webhooks/sendbird";

/// A configuration file and the directory that it and the journal are in.
#[derive(Clone)]
pub(crate) struct Config {
    dir: Arc<TempDir>,
    keys: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    stdout: Stdout,
    file_descriptors: Option<u32>,
    mount: Option<String>,
}

impl Config {
    /// Loopback, free ports, signatures required, a journal in a directory of its own, no sink.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-it-").tempdir().unwrap();
        let journal = dir.path().join("journal");
        Self {
            dir: Arc::new(dir),
            keys: BTreeMap::new(),
            environment: Vec::new(),
            stdout: Stdout::Read,
            file_descriptors: None,
            mount: None,
        }
        .set("server.listen", "'127.0.0.1:0'")
        .set("admin.listen", "'127.0.0.1:0'")
        .set("access.api_tokens", &format!("['{TOKEN}']"))
        .set("journal.dir", &format!("'{}'", journal.display()))
    }

    /// Sets a key to a value, which is written as it is.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.keys.insert(key.into(), value.into());
        self
    }

    /// Leaves a key out.
    pub(crate) fn unset(mut self, key: &str) -> Self {
        self.keys.remove(key);
        self
    }

    /// Sets a variable.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// A sink on standard output.
    pub(crate) fn stdout_sink(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self.set("sinks.lines.type", "'stdout'")
    }

    /// What becomes of standard output.
    pub(crate) fn stdout(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// How many file descriptors the process may have.
    pub(crate) fn file_descriptors(mut self, most: u32) -> Self {
        self.file_descriptors = Some(most);
        self
    }

    /// The journal is on a file system of so many MiB, which the process takes with it when it ends.
    pub(crate) fn small_disk(mut self, mib: u32) -> Self {
        let dir = self.dir().join("journal");
        fs::create_dir(&dir).unwrap();
        self.mount = Some(format!("mount -t tmpfs -o size={mib}m none '{}'", dir.display()));
        self
    }

    /// The journal's directory can be read and not written, as on a file system that was mounted so.
    pub(crate) fn read_only_disk(mut self) -> Self {
        let dir = self.dir().join("journal").display().to_string();
        self.mount = Some(format!("mount --bind '{dir}' '{dir}' && mount -o remount,ro,bind '{dir}'"));
        self
    }

    /// Fixed ports, so that a bridge that is started again is found where it was. On an address of its own, because
    /// between two starts anybody may get a port of 127.0.0.1.
    pub(crate) fn fixed_address(self) -> Self {
        let own = Ipv4Addr::new(127, fastrand::u8(1..250), fastrand::u8(..), fastrand::u8(1..250));
        self.set("server.listen", &format!("'{own}:8080'")).set("admin.listen", &format!("'{own}:9090'"))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the file and says where it is.
    pub(crate) fn write(&self) -> PathBuf {
        let file = self.dir().join("bridge.toml");
        let text: String = self.keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        fs::write(&file, text).unwrap();
        file
    }

    /// Starts the program with this configuration.
    pub(crate) fn process(&self, arguments: &[&str]) -> Process {
        let mut command = match (self.file_descriptors, &self.mount) {
            (Some(most), _) => limited(&format!("ulimit -n {most}")),
            (None, Some(mount)) => mounted(mount),
            (None, None) => program(),
        };
        command.arg("--config").arg(self.write()).args(["--log-format", "json"]).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Process::start(command, self.stdout)
    }

    /// Starts the bridge and waits until it listens.
    #[track_caller]
    pub(crate) fn start(&self) -> Bridge {
        let mut process = self.process(&["serve"]);
        let log = process.stderr();
        let mut addresses = None;
        eventually("the bridge listens", || {
            addresses = log.so_far().iter().find_map(|line| listening(line));
            assert!(addresses.is_some() || process.is_running(), "the bridge ended: {}", log.so_far().join("\n"));
            addresses.is_some()
        });
        let (webhook, admin) = addresses.unwrap();
        Bridge { process, webhook, admin, config: self.clone() }
    }

    /// Runs a bridge that is not to start, to its end.
    pub(crate) fn refused(&self) -> Ended {
        self.process(&["serve"]).wait()
    }
}

/// The addresses in the line that says that the bridge listens.
fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["message"] != "listening" {
        return None;
    }
    let address = |field: &str| {
        let url = line[field].as_str()?;
        let url = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
        url.split('/').next()?.parse::<SocketAddr>().ok()
    };
    Some((address("webhook")?, address("admin")?))
}

/// A running bridge.
pub(crate) struct Bridge {
    pub(crate) process: Process,
    pub(crate) webhook: SocketAddr,
    pub(crate) admin: SocketAddr,
    config: Config,
}

/// An event of the feed.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) position: u64,
    /// The structured envelope as it came.
    pub(crate) line: String,
    pub(crate) envelope: Value,
}

impl Event {
    pub(crate) fn id(&self) -> &str {
        self.envelope["id"].as_str().unwrap()
    }

    pub(crate) fn key(&self) -> &str {
        self.envelope["partitionkey"].as_str().unwrap()
    }
}

impl Bridge {
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn log(&self) -> Lines {
        self.process.stderr()
    }

    /// What the stdout sink has printed.
    pub(crate) fn printed(&self) -> Lines {
        self.process.stdout()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}{PATH}", self.webhook)
    }

    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// Delivers a signed body over a connection of its own.
    pub(crate) fn deliver(&self, body: &[u8]) -> Response {
        signed(body).send(self.webhook)
    }

    pub(crate) fn admin(&self, target: &str) -> Response {
        Request::get(target).send(self.admin)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.admin("/readyz").status == 200
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let response = self.admin("/metrics");
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(response.text())
    }

    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().value(name, labels)
    }

    pub(crate) fn status(&self) -> Value {
        self.admin("/status").json()
    }

    /// All that is in the feed now.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events_of("follow=false")
    }

    /// What a query of the feed gives, to its end.
    #[track_caller]
    pub(crate) fn events_of(&self, query: &str) -> Vec<Event> {
        self.feed(&Request::get(&format!("/events?{query}"))).rest()
    }

    /// Opens the feed.
    #[track_caller]
    pub(crate) fn feed(&self, request: &Request) -> Feed {
        let mut connection = Connection::open(self.admin);
        connection.write(&request.bytes());
        let (status, headers) = connection.try_head().expect("an answer of the feed");
        assert_eq!(status, 200);
        assert!(headers.contains(&("content-type".into(), "text/event-stream".into())), "{headers:?}");
        Feed { connection, text: String::new(), comments: Vec::new() }
    }

    /// Waits until every sink has dealt with all there is.
    #[track_caller]
    pub(crate) fn caught_up(&self) {
        eventually("all sinks have caught up", || {
            let status = self.status();
            let sinks = status["sinks"].as_array().unwrap();
            sinks.iter().all(|sink| sink["pending_records"] == 0)
        });
    }

    /// Ends it politely and says how it ended.
    pub(crate) fn stop(self) -> Ended {
        self.process.terminate();
        self.process.wait_within(PATIENCE)
    }

    pub(crate) fn kill_9(self) -> Ended {
        self.process.kill_9()
    }
}

/// A signed delivery.
pub(crate) fn signed(body: &[u8]) -> Request {
    signed_by(TOKEN, body)
}

/// A delivery signed with this token.
pub(crate) fn signed_by(token: &str, body: &[u8]) -> Request {
    let signature = sendbird_bridge::sendbird::signature::sign(token, body);
    Request::post(PATH).header("content-type", "application/json").header("x-sendbird-signature", &signature).body(body)
}

/// An open feed.
pub(crate) struct Feed {
    connection: Connection,
    text: String,
    pub(crate) comments: Vec<String>,
}

impl Feed {
    /// The next event, waiting for it; `None` when the feed has ended.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                if let Some(comment) = block.strip_prefix(": ") {
                    self.comments.push(comment.to_owned());
                    continue;
                }
                let lines: Vec<&str> = block.lines().collect();
                let [id, data] = lines[..] else { panic!("expected an id and data, but found {block:?}") };
                let position = id.strip_prefix("id: ").expect("an id").parse().expect("a position");
                let line = data.strip_prefix("data: ").expect("data").to_owned();
                let envelope = serde_json::from_str(&line).expect("an envelope");
                schemas::judge(&envelope);
                return Some(Event { position, line, envelope });
            }
            let chunk = self.connection.chunk().expect("a feed that ends properly")?;
            self.text += std::str::from_utf8(&chunk).expect("UTF-8");
        }
    }

    pub(crate) fn rest(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl AsRef<Config> for Config {
    fn as_ref(&self) -> &Config {
        self
    }
}

impl AsRef<Config> for Bridge {
    fn as_ref(&self) -> &Config {
        &self.config
    }
}

/// Runs a command with this configuration, or that of a bridge, to its end.
pub(crate) fn command(of: &impl AsRef<Config>, arguments: &[&str]) -> Ended {
    of.as_ref().clone().stdout(Stdout::Read).process(arguments).wait()
}

/// The same for a command that is to succeed; what it has printed.
#[track_caller]
pub(crate) fn done(of: &impl AsRef<Config>, arguments: &[&str]) -> String {
    let ended = command(of, arguments);
    assert_eq!(ended.code(), Some(0), "{arguments:?}: {}{}", ended.stdout(), ended.stderr());
    ended.stdout()
}
