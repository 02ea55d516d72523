//! Sendbird's Calls Platform API, as its public pages tell it: a server on loopback, in the process of the test.
//!
//! The one part of the tests that is not real, because nobody can start the real one. It judges requests strictly, so
//! that a wrong client fails: exact headers, the types of JSON, known parameters only, the rate limits. What the
//! pages leave open can be switched: both paths of the webhook settings, whether `include_members` is returned, whether `*`
//! is answered spelled out, the order of lists. And it fails on demand.

mod answers;
mod lists;
mod wire;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sendbird_bridge::sendbird::category::Category;
use serde_json::{Value, json};

use self::wire::{Answer, Incoming};
use super::PATIENCE;
use super::certificates::Files;

/// The one application that it knows.
pub(crate) const APPLICATION: &str = "0A1B2C3D-1111-4222-8333-444455556666";

/// Its API token.
pub(crate) const API_TOKEN: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// Under which paths the webhook settings are. Sendbird's pages are not of one mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// `/applications/{application_id}/settings/webhook`.
    WithApplication,
    /// `/applications/settings/webhook`; under the other there is nothing (404).
    WithoutApplication,
    /// The same, but under the other an application is not found (400 with code 400200).
    WithoutApplicationOrFound,
}

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No answer until the client has gone away. Nothing is done.
    Silent,
    /// The connection is closed without an answer. Nothing is done.
    Dropped,
    /// What was asked for is done, and the connection is closed without an answer.
    DoneAndDropped,
    /// What was asked for is done, and answered 500 with code 500999.
    DoneAndFailed,
    /// What was asked for is answered as if it were done, and is not.
    Ignored,
    /// 500 with code 500999. Nothing is done.
    Failed,
    /// An answer that breaks off in its body. Nothing is done.
    CutOff,
    /// This status, and a page in place of JSON. Nothing is done.
    Page(u16),
    /// An answer of so many bytes, which is JSON. Nothing is done.
    Large(usize),
    /// 429, with this `Retry-After`. Nothing is done.
    Limited(Option<u64>),
    /// This status and JSON. Nothing is done.
    Json(u16, Value),
}

/// A request that it got, and how it was answered.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query, without `/v1`.
    pub(crate) target: String,
    pub(crate) body: String,
    /// `None` if there was no answer.
    pub(crate) status: Option<u16>,
    pub(crate) at: Instant,
}

/// All that it knows and all that it was asked to do.
struct State {
    paths: Paths,
    webhook: Value,
    categories: Vec<String>,
    tells_include_members: bool,
    spells_out_all: bool,
    newest_first: bool,
    calls: Vec<Value>,
    rooms: Vec<Value>,
    participants: BTreeMap<String, Vec<Value>>,
    cursors: HashMap<String, (String, usize)>,
    /// `GET`, and everything else, in a second.
    limits: (usize, usize),
    windows: HashMap<String, VecDeque<Instant>>,
    /// When the request arrived that is being answered.
    now: Instant,
    faults: VecDeque<(String, Fault)>,
    seen: Vec<Seen>,
}

/// The server. It ends when dropped.
pub(crate) struct Platform {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Platform {
    /// With the settings of an application whose webhook was never set up, and without calls and rooms.
    pub(crate) fn start() -> Self {
        Self::serve(None)
    }

    /// The same over TLS, with this certificate for 127.0.0.1.
    pub(crate) fn start_tls(files: &Files) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let chain = vec![CertificateDer::from_pem_file(&files.cert_file).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&files.key_file).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self::serve(Some(Arc::new(config)))
    }

    fn serve(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(Mutex::new(State::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&state), Arc::clone(&stopping));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                std::thread::spawn(move || match tls {
                    None => converse(stream, &state, address),
                    Some(config) => {
                        let Ok(connection) = ServerConnection::new(config) else { return };
                        converse(StreamOwned::<_, TcpStream>::new(connection, stream), &state, address);
                    }
                });
            }
        });
        Self { address, scheme, state, stopping, accepting: Some(accepting) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The address of the API, in place of Sendbird's own.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}/v1", self.scheme, self.address)
    }

    /// The address of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Every request so far, as method and target.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state().seen.iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect()
    }

    /// The webhook settings as they are now.
    pub(crate) fn webhook(&self) -> Value {
        self.state().webhook.clone()
    }

    /// Changes one of the webhook settings, as somebody else would.
    pub(crate) fn set(&self, setting: &str, value: Value) {
        self.state().webhook[setting] = value;
    }

    /// Adds an event that nobody knew when this was written.
    pub(crate) fn add_category(&self, name: &str) {
        self.state().categories.push(name.to_owned());
    }

    /// Under which paths the webhook settings are; at first [`Paths::WithApplication`].
    pub(crate) fn paths(&self, paths: Paths) {
        self.state().paths = paths;
    }

    /// Whether settings are answered with `include_members`; at first they are.
    pub(crate) fn tells_include_members(&self, tells: bool) {
        self.state().tells_include_members = tells;
    }

    /// Whether `*` is answered as the names of all events; at first it is not.
    pub(crate) fn spells_out_all(&self, spells: bool) {
        self.state().spells_out_all = spells;
    }

    /// Whether lists begin with what is newest; at first they do.
    pub(crate) fn newest_first(&self, newest: bool) {
        self.state().newest_first = newest;
    }

    /// How many `GET` and how many others of one endpoint it takes in a second; at first 10 and 5.
    pub(crate) fn limits(&self, get: usize, others: usize) {
        self.state().limits = (get, others);
    }

    /// What goes wrong with the next request of this method that nothing else goes wrong with; in order.
    pub(crate) fn fail(&self, method: &str, fault: Fault) {
        self.state().faults.push_back((method.to_owned(), fault));
    }

    /// Adds a direct call, as the API shows it, or replaces it.
    pub(crate) fn add_call(&self, call: Value) {
        put(&mut self.state().calls, "call_id", call);
    }

    /// Adds a room, as the API shows it, or replaces it, and all who were or are in it.
    pub(crate) fn add_room(&self, room: Value, participants: Vec<Value>) {
        let id = room["room_id"].as_str().expect("a room_id").to_owned();
        let mut state = self.state();
        put(&mut state.rooms, "room_id", room);
        state.participants.insert(id, participants);
    }
}

fn put(list: &mut Vec<Value>, id: &str, value: Value) {
    assert!(value[id].is_string(), "{value}");
    list.retain(|known| known[id] != value[id]);
    list.push(value);
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        TcpStream::connect(self.address).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
        if std::thread::panicking() {
            eprintln!("---- what the platform saw ----");
            for seen in &self.state().seen {
                eprintln!("{:?} {} {} {}", seen.status, seen.method, seen.target, seen.body);
            }
        }
    }
}

impl State {
    fn new() -> Self {
        Self {
            paths: Paths::WithApplication,
            webhook: json!({ "enabled": false, "url": "", "enabled_events": [], "include_members": false }),
            categories: Category::ALL.map(|category| category.label().to_owned()).to_vec(),
            tells_include_members: true,
            spells_out_all: false,
            newest_first: true,
            calls: Vec::new(),
            rooms: Vec::new(),
            participants: BTreeMap::new(),
            cursors: HashMap::new(),
            limits: (10, 5),
            windows: HashMap::new(),
            now: Instant::now(),
            faults: VecDeque::new(),
            seen: Vec::new(),
        }
    }

    fn next_fault(&mut self, method: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(of, _)| of == method)?;
        self.faults.remove(at).map(|(_, fault)| fault)
    }
}

/// A thread of a test that failed while it held the state has said so itself.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, kept alive.
fn converse(mut stream: impl Read + Write, state: &Mutex<State>, address: SocketAddr) {
    let mut left = Vec::new();
    while let Some(incoming) = wire::read(&mut stream, &mut left) {
        let (answer, fault) = decide(&mut lock(state), &incoming, address);
        match (fault, answer) {
            (Some(Fault::Silent), _) => {
                // Ends when the client does.
                std::io::copy(&mut stream, &mut std::io::sink()).ok();
                return;
            }
            (Some(Fault::CutOff), Some(answer)) => {
                wire::write_half(&mut stream, &answer);
                return;
            }
            (_, None) => return,
            (_, Some(answer)) => {
                if !wire::write(&mut stream, &answer) {
                    return;
                }
            }
        }
    }
}

/// What is answered, and written down.
fn decide(state: &mut State, incoming: &Incoming, address: SocketAddr) -> (Option<Answer>, Option<Fault>) {
    state.now = Instant::now();
    let fault = state.next_fault(&incoming.method);
    let failed = || Answer::error(500, 500_999, "UnknownError", "unexpected error");
    let answer = match &fault {
        Some(Fault::Silent | Fault::Dropped) => None,
        Some(Fault::DoneAndDropped) => {
            answers::answer(state, incoming, address);
            None
        }
        Some(Fault::DoneAndFailed) => {
            answers::answer(state, incoming, address);
            Some(failed())
        }
        Some(Fault::Ignored) => {
            let before = state.webhook.clone();
            let answer = answers::answer(state, incoming, address);
            state.webhook = before;
            Some(answer)
        }
        Some(Fault::Failed) => Some(failed()),
        Some(Fault::CutOff) => Some(Answer::json(200, &json!({ "webhook": {} }))),
        Some(Fault::Page(status)) => Some(Answer::page(*status)),
        Some(Fault::Large(bytes)) => Some(Answer::json(200, &json!({ "webhook": {}, "more": "x".repeat(*bytes) }))),
        Some(Fault::Limited(wait)) => Some(answers::limited().retry_after(*wait)),
        Some(Fault::Json(status, body)) => Some(Answer::json(*status, body)),
        None => Some(answers::answer(state, incoming, address)),
    };
    state.seen.push(Seen {
        method: incoming.method.clone(),
        target: incoming.target.strip_prefix("/v1").unwrap_or(&incoming.target).to_owned(),
        body: String::from_utf8_lossy(&incoming.body).into_owned(),
        status: answer.as_ref().map(|answer| answer.status),
        at: state.now,
    });
    (answer, fault)
}
