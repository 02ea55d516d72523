//! `demo`: a bridge, a day of deliveries and the proof that all of them arrived, with nothing installed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::client::TlsArgs;
use super::sendbird::{Outcome, Sendbird};
use crate::access::SignatureMode;
use crate::app::App;
use crate::config::{Config, SinkConfig, SinkKind};
use crate::domain::clock::Clock;
use crate::domain::envelope::Format;
use crate::domain::secret::Secret;
use crate::domain::units::Span;
use crate::journal::Journal;
use crate::sendbird::sample::{Sample, day};
use crate::shutdown;
use crate::sink::stdout;

/// The token that the demo signs with.
const TOKEN: &str = "demo-master-api-token";

const APPLICATION: &str = "0A1B2C3D-1111-4222-8333-444455556666";

/// The same people call each other in every demo.
const SEED: u64 = 20;

/// The day that is played is the last one.
const A_DAY_MS: i64 = 24 * 3600 * 1000;

/// Every so many deliveries one is sent again, as Sendbird does when an answer got lost.
const RETRY_EVERY: usize = 7;

/// How long the sink may take to print the last envelope.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(10);

const SINK: &str = "stdout";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Stay up after the day is over, for deliveries of your own
    #[arg(long)]
    keep_running: bool,

    /// Wait so long after each delivery, as in "500ms", to watch them on the operations page
    #[arg(long, value_name = "TIME")]
    pace: Option<Span>,

    /// In place of the option of all other commands: the demo has a configuration of its own.
    #[arg(long, hide = true, value_parser = no_configuration)]
    config: Option<PathBuf>,
}

fn no_configuration(_: &str) -> Result<PathBuf, &'static str> {
    Err("the demo has a configuration of its own; to run yours: sendbird-bridge serve")
}

#[derive(Default)]
struct Totals {
    sent: u64,
    stored: u64,
    duplicates: u64,
    other: u64,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("sendbird-bridge-demo-").tempdir().map_err(Failure::other)?;
    let mut config = Config::default();
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.admin.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.access.signature = SignatureMode::Required;
    config.access.api_tokens = vec![Secret::new(TOKEN)];
    config.journal.dir = dir.path().join("journal");
    let sink = SinkConfig {
        kind: SinkKind::Stdout(stdout::Settings::default()),
        categories: Vec::new(),
        applications: Vec::new(),
        format: Format::Structured,
    };
    config.sinks.insert(SINK.into(), sink);
    let path = config.server.path.clone();
    let app = App::bind(config).await.map_err(Failure::other)?;
    let (webhook, admin) = app.addresses().map_err(Failure::other)?;
    let url = format!("http://{webhook}{path}");
    let journal = app.journal().clone();
    let stop = CancellationToken::new();
    let play = async {
        if args.keep_running || args.pace.is_some() {
            eprintln!("the operations page: http://{admin}/");
        }
        let played = play(&url, &journal, args.pace).await;
        if args.keep_running && played.is_ok() {
            eprintln!("\nstill running until Ctrl-C:");
            eprintln!("  sendbird-bridge send --all --url {url} --token {TOKEN}");
            eprintln!("  sendbird-bridge tail --url http://{admin}");
            stop.cancelled().await;
        }
        stop.cancel();
        played
    };
    let signalled = shutdown::on_signal(stop.clone()).map_err(Failure::other)?;
    tokio::select! {
        (stopped, played) = async { tokio::join!(app.run(stop.clone()), play) } => {
            stopped.map_err(Failure::other)?;
            played
        }
        () = signalled => Ok(()),
    }
}

async fn play(url: &str, journal: &Journal, pace: Option<Span>) -> Result<(), Failure> {
    eprintln!("a bridge on {url} with a temporary journal; its sink is standard output");
    eprintln!("playing a day of Sendbird Calls, signed, with retries of some deliveries\n");
    let sendbird = Sendbird::new(
        url.parse::<Uri>().map_err(Failure::other)?,
        Some(Secret::new(TOKEN)),
        Vec::new(),
        &TlsArgs::default(),
    )?;
    let mut totals = Totals::default();
    for (index, sample) in day(SEED, Clock::system().now_ms() - A_DAY_MS, APPLICATION).into_iter().enumerate() {
        if is_unread() {
            eprintln!("\nwhoever read standard output has gone; ending");
            return Ok(());
        }
        totals.count(&sample, &sendbird.deliver(&sample.body).await);
        if index % RETRY_EVERY == RETRY_EVERY - 1 {
            totals.count(&sample, &sendbird.deliver(&sample.body).await);
        }
        if let Some(Span(pace)) = pace {
            sleep(pace).await;
        }
    }
    let published = published(journal, totals.stored).await;
    // It went while the last ones were printed.
    if published < totals.stored && is_unread() { Ok(()) } else { totals.close(published) }
}

/// Whether standard output is a pipe or a socket whose reader has gone, as `head` does.
fn is_unread() -> bool {
    let stdout = rustix::stdio::stdout();
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    let answered = poll(&mut asked, Some(&Timespec::default())).is_ok();
    answered && asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// How many events the sink has printed, once it has printed all or has had its time.
async fn published(journal: &Journal, stored: u64) -> u64 {
    let deadline = Instant::now() + PUBLISHED_WITHIN;
    while journal.cursor(SINK) < stored && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    // Positions start at 1 and grow by one, and nothing is set aside by this sink.
    journal.cursor(SINK)
}

impl Totals {
    fn count(&mut self, sample: &Sample, outcome: &Outcome) {
        self.sent += 1;
        let status = outcome.answer.as_ref().map_or("", |answer| answer.status.as_str());
        match (outcome.status, status) {
            (Some(200), "stored") => self.stored += 1,
            (Some(200), "duplicate") => self.duplicates += 1,
            _ => self.other += 1,
        }
        let answer = outcome.status.map_or_else(|| "no answer".to_owned(), |code| format!("{code} {status}"));
        let ms = outcome.took.as_secs_f64() * 1000.0;
        eprintln!("{:<28} {:<38} {answer:<14} {ms:>6.2} ms  {}", sample.category.label(), sample.key, who(sample));
    }

    fn close(&self, published: u64) -> Result<(), Failure> {
        eprintln!("\n{:<18}{:>6}", "deliveries sent", self.sent);
        eprintln!("{:<18}{:>6}", "stored", self.stored);
        eprintln!("{:<18}{:>6}", "duplicates", self.duplicates);
        eprintln!("{:<18}{:>6}", "published", published);
        if self.other == 0 && self.sent == self.stored + self.duplicates && published == self.stored {
            eprintln!("\neverything adds up: sent = stored + duplicates, and published = stored");
            return Ok(());
        }
        Err(Failure::Failed(format!("the sums do not add up; {} deliveries were not answered 200", self.other)))
    }
}

/// Who did it, for the story on the terminal.
fn who(sample: &Sample) -> String {
    let body: Value = serde_json::from_slice(&sample.body).unwrap_or_default();
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let pair = |from: &str, to: &str| Some(format!("{} -> {}", text(from)?, text(to)?));
    pair("/direct_call/caller_id", "/direct_call/callee_id")
        .or_else(|| pair("/inviter/user_id", "/invitee/user_id"))
        .or_else(|| text("/participant/user/user_id").map(str::to_owned))
        .or_else(|| text("/room/created_by").map(str::to_owned))
        .unwrap_or_default()
}
