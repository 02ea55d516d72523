//! `send`: plays Sendbird towards any URL.
//!
//! Deliveries of one call or room go out one after the other, as they
//! would happen; different ones side by side.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::Scheme;
use indicatif::ProgressBar;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::client::{self, TlsArgs};
use super::latency::Latencies;
use super::sendbird::{Outcome, Sendbird};
use super::table::progress_bar;
use super::{Failure, print, reach};
use crate::access::SignatureMode;
use crate::config::{Config, Loaded};
use crate::domain::clock::Clock;
use crate::domain::secret::Secret;
use crate::domain::units::Span;
use crate::sendbird::category::Category;
use crate::sendbird::sample::{Sample, Sampler};
use crate::shutdown;

/// Deliveries that may wait for a sender that is held up.
const QUEUE: usize = 16;

/// Between two tries to connect before the first delivery.
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(200);

/// So many deliveries are shown one by one.
const FEW: u64 = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to deliver; by default the configured webhook on this machine, http://127.0.0.1:8080/webhooks/sendbird
    #[arg(long, value_parser = client::url)]
    url: Option<Uri>,

    /// Wait up to this long until the address takes connections, as in "15s"; by default, only the deliveries' own tries
    #[arg(long, value_name = "TIME")]
    connect_within: Option<Span>,

    /// The master API token to sign with; by default the first of the application's own in the configuration, or of
    /// access.api_tokens. Without one, deliveries are not signed
    #[arg(long, value_parser = client::secret)]
    token: Option<Secret>,

    /// A file that holds the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,

    #[command(flatten)]
    tls: TlsArgs,

    /// A header that each delivery carries, as NAME:VALUE (repeatable), beside access.header of the configuration
    #[arg(long, value_name = "NAME:VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,

    /// Deliver this category (repeatable); by default one direct_call:dial
    #[arg(long, value_name = "CATEGORY", value_parser = category)]
    category: Vec<Category>,

    /// Deliver all 13 categories, in the natural order of live calls and rooms
    #[arg(long, conflicts_with = "category")]
    all: bool,

    /// Deliver this body, as it is
    #[arg(long, value_name = "FILE", conflicts_with_all = ["category", "all"])]
    file: Option<PathBuf>,

    /// How many deliveries to make; by default one of each category
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Deliveries per second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// How many deliveries may be under way at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,

    /// How many live calls and rooms to interleave; by default four for each delivery under way
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    calls: Option<u32>,

    /// Makes the same deliveries again; by default they are new each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// The application that the deliveries name
    #[arg(long, value_name = "ID", default_value = "0A1B2C3D-1111-4222-8333-444455556666")]
    application: String,
}

/// What is counted while sending.
struct Tally {
    latencies: Latencies,
    results: BTreeMap<String, u64>,
    not_in_time: u64,
    retried: u64,
}

pub(super) async fn run(args: Args, loaded: Loaded) -> Result<(), Failure> {
    let url = args.url.clone().map_or_else(|| configured_url(&loaded.config), Ok)?;
    let sendbird = sendbird(&args, url.clone(), &loaded.config)?;
    let (samples, count) = samples(&args)?;
    let tally = Arc::new(Mutex::new(Tally {
        latencies: Latencies::new()?,
        results: BTreeMap::new(),
        not_in_time: 0,
        retried: 0,
    }));
    if let Some(Span(limit)) = args.connect_within {
        // Whether it was in vain, the first delivery will tell.
        let _in_time = timeout(limit, await_listener(&url)).await;
    }
    let progress = progress_bar(count, "{bar:40} {human_pos}/{human_len} {per_sec} {eta} left");
    let begun = Instant::now();
    let stop = CancellationToken::new();
    let signalled = shutdown::on_signal(stop.clone()).map_err(Failure::other)?;
    let shown = count <= FEW;
    let sending = send_all(&args, &sendbird, samples, (&tally, shown), &progress, &stop);
    let ended = tokio::select! {
        ended = sending => ended,
        // After the first signal it comes to its end by itself.
        () = signalled => Ok(()),
    };
    progress.finish_and_clear();
    ended?;
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    let sent = tally.sent();
    print(&report(&tally, sent, begun.elapsed()))?;
    match tally.not_in_time {
        0 if sent < count => Err(Failure::Failed(format!("interrupted: {sent} of {count} deliveries were made"))),
        0 => Ok(()),
        n => {
            let why = tally.most_frequent_failure().unwrap_or("not answered 200");
            Err(Failure::Failed(format!("{n} of {sent} deliveries failed: {why}")))
        }
    }
}

/// Sendbird, with what the arguments leave out as the configuration has it.
fn sendbird(args: &Args, url: Uri, config: &Config) -> Result<Sendbird, Failure> {
    let access = &config.access;
    let signed = access.signature != SignatureMode::Off;
    let token = client::token(args.token.clone(), args.token_file.as_ref())?;
    let (_, known) = config.applications.tokens_of(&args.application, &access.api_tokens);
    let token = token.or_else(|| known.first().filter(|_| signed).cloned());
    let mut headers = args.header.clone();
    if let Some(configured) = &access.header {
        let (name, value) =
            header(&format!("{}:{}", configured.name, configured.value.expose())).map_err(Failure::Usage)?;
        if args.header.iter().all(|(given, _)| *given != name) {
            headers.push((name, value));
        }
    }
    Sendbird::new(url, token, headers, &args.tls)
}

fn configured_url(config: &Config) -> Result<Uri, Failure> {
    let server = &config.server;
    let base = reach::url("server.listen", server.listen, server.tls.is_some())?.to_string();
    let secret = config.access.path_secret.as_ref().map_or_else(String::new, |secret| format!("/{}", secret.expose()));
    let url = format!("{}{}{secret}", base.trim_end_matches('/'), server.path.trim_end_matches('/'));
    url.parse().map_err(Failure::other)
}

/// Until the address takes a connection.
async fn await_listener(url: &Uri) {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(if url.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    while TcpStream::connect((host, port)).await.is_err() {
        sleep(BETWEEN_CONNECTIONS).await;
    }
}

/// Deliveries of one key go to one sender, so they stay in order.
async fn send_all(
    args: &Args,
    sendbird: &Sendbird,
    samples: impl Iterator<Item = Sample>,
    (tally, shown): (&Arc<Mutex<Tally>>, bool),
    progress: &ProgressBar,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mut senders = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..args.concurrency {
        let (queue, mut waiting) = mpsc::channel::<Sample>(QUEUE);
        let (sendbird, tally, progress, stop) = (sendbird.clone(), Arc::clone(tally), progress.clone(), stop.clone());
        queues.push(queue);
        senders.spawn(async move {
            while let Some(sample) = waiting.recv().await.filter(|_| !stop.is_cancelled()) {
                let outcome = sendbird.deliver(&sample.body).await;
                tally.lock().unwrap_or_else(PoisonError::into_inner).add(&outcome);
                if shown {
                    progress.suspend(|| print(&line(&sample, &outcome)))?;
                }
                progress.inc(1);
            }
            Ok::<(), Failure>(())
        });
    }
    let begun = Instant::now();
    for (index, sample) in samples.enumerate() {
        if let Some(rate) = args.rate {
            let due = begun + Duration::from_secs_f64(index as f64 / f64::from(rate));
            tokio::select! {
                () = sleep_until(due) => {}
                () = stop.cancelled() => break,
            }
        }
        let mut hasher = DefaultHasher::new();
        sample.key.hash(&mut hasher);
        let queue = &queues[(hasher.finish() % queues.len() as u64) as usize];
        tokio::select! {
            sent = queue.send(sample) => if sent.is_err() { break },
            () = stop.cancelled() => break,
        }
    }
    drop(queues);
    while let Some(ended) = senders.join_next().await {
        ended.map_err(Failure::other)??;
    }
    Ok(())
}

type Samples = Box<dyn Iterator<Item = Sample>>;

fn samples(args: &Args) -> Result<(Samples, u64), Failure> {
    if let Some(file) = &args.file {
        let body = std::fs::read(file)
            .map_err(|error| Failure::Usage(format!("cannot read the body from {}: {error}", file.display())))?;
        let sample = Sample { category: Category::Other, key: String::new(), body: body.into() };
        let count = args.count.unwrap_or(1);
        return Ok((Box::new((0..count).map(move |_| sample.clone())), count));
    }
    let now_ms = Clock::system().now_ms();
    let calls = args.calls.unwrap_or(u32::from(args.concurrency) * 4) as usize;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    // Deliveries happen 20 ms apart on average, and the last of them happens about now.
    let span_ms = i64::try_from(args.count.unwrap_or(0)).unwrap_or(i64::MAX).saturating_mul(20);
    let mut sampler = Sampler::new(seed, calls, now_ms.saturating_sub(span_ms), &args.application);
    if args.all {
        let count = args.count.unwrap_or(Category::ALL.len() as u64);
        // Fewer than one of each would not be all: live calls alone might take long to show the rarest.
        let first: Vec<Sample> = Category::ALL.into_iter().map(|category| sampler.of(category)).collect();
        let samples = (0..count).zip(first.into_iter().chain(sampler)).map(|(_, sample)| sample);
        return Ok((Box::new(samples), count));
    }
    let categories = if args.category.is_empty() { vec![Category::DirectCallDial] } else { args.category.clone() };
    let count = args.count.unwrap_or(categories.len() as u64);
    let samples = (0..count).zip(categories.into_iter().cycle()).map(move |(_, category)| sampler.of(category));
    Ok((Box::new(samples.collect::<Vec<_>>().into_iter()), count))
}

impl Tally {
    fn sent(&self) -> u64 {
        self.results.values().sum()
    }

    /// What most of those that failed were answered, or why they were not.
    fn most_frequent_failure(&self) -> Option<&str> {
        let failed = self.results.iter().filter(|(result, _)| !result.starts_with("200"));
        failed.max_by_key(|(_, count)| **count).map(|(result, _)| result.as_str())
    }

    fn add(&mut self, outcome: &Outcome) {
        if outcome.status.is_some() {
            self.latencies.add(outcome.took);
        }
        self.retried += u64::from(outcome.tries > 1);
        self.not_in_time += u64::from(outcome.status != Some(200));
        *self.results.entry(outcome.result()).or_default() += 1;
    }
}

/// One delivery, with what is needed to look for its event.
fn line(sample: &Sample, outcome: &Outcome) -> String {
    let ms = outcome.took.as_secs_f64() * 1000.0;
    let id = outcome.answer.as_ref().map_or("", |answer| answer.id.as_str());
    let line = format!("{:<28} {:<38} {}  {ms:.2} ms  {id}", sample.category.label(), sample.key, outcome.result());
    format!("{}\n", line.trim_end())
}

fn report(tally: &Tally, count: u64, took: Duration) -> String {
    let mut text = tally.latencies.table();
    for (result, n) in &tally.results {
        text += &format!("{n:>7} {result}\n");
    }
    if tally.retried > 0 {
        text += &format!("{:>7} were retried\n", tally.retried);
    }
    let seconds = took.as_secs_f64();
    let what = if count == 1 { "delivery" } else { "deliveries" };
    text + &format!("{count:>7} {what} in {seconds:.1} s, {:.0} a second\n", count as f64 / seconds.max(0.001))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME:VALUE")?;
    let name = name.trim().parse().map_err(|_no_name| "expected a header name before the colon")?;
    let value = value.trim().parse().map_err(|_no_value| "expected a header value after the colon")?;
    Ok((name, value))
}

fn category(text: &str) -> Result<Category, String> {
    match Category::of(text) {
        Category::Other => {
            let known: Vec<&str> = Category::ALL.iter().map(|category| category.label()).collect();
            let hint = crate::config::nearest(text, &known).map(|known| format!("; did you mean {known}?"));
            Err(format!("expected one of {}{}", known.join(", "), hint.unwrap_or_default()))
        }
        known => Ok(known),
    }
}
