//! The whole bridge: opens everything, owns every task, stops everything in order.

pub mod drain;
mod reload;
mod spans;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use self::reload::{Reload, SecretConsumers};
use crate::access::{Access, TrustedProxies};
use crate::config::{Config, SinkConfig, SinkKind};
use crate::contracts;
use crate::domain::clock::Clock;
use crate::domain::kind;
use crate::domain::secret::RotatableSecret;
use crate::http::admin::{self, Admin};
use crate::http::documents::Documents;
use crate::http::feed::Feeds;
use crate::http::listener::{Bound, Limits, Listener, Terms};
use crate::http::overview::{Observed, Observer, SinkEntry};
use crate::http::page::PageFiles;
use crate::http::readiness::Readiness;
use crate::http::refusals::Refusals;
use crate::http::tls::{self, Certificates};
use crate::http::{descriptors, reply, webhook};
use crate::journal::{self, Journal, SinkSpec};
use crate::metrics::{Labels, Metrics};
use crate::pipeline::{Forwarder, Intake, SinkStatus};
use crate::sendbird::category::{Category, event_type};
use crate::sendbird::reconcile;
use crate::sink::{Reason, Sink, stdout};
use crate::traces::Tracer;

/// From the signal to the end of the process, at most, without `stop.publish_for`; each step has its own, shorter limit. The
/// grace period of a pod must be longer.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What closing the journal has of [`STOP_LIMIT`], at least. What is not closed then is recovered by the next start.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// How often a stopping bridge looks whether anything is pending.
const PENDING_CHECK: Duration = Duration::from_millis(50);

/// Why the bridge can't start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal can't be opened.
    #[error(transparent)]
    Journal(#[from] journal::OpenError),
    /// An address can't be bound.
    #[error("cannot listen on {address} ({key})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The key that it comes from.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The files of a listener's certificate can't be used.
    #[error("{key}: {fault}")]
    Certificate {
        /// The key that names the file.
        key: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A sink can't be made from its settings.
    #[error("cannot set up the sink \"{name}\": {detail}")]
    Sink {
        /// The sink.
        name: String,
        /// What its client said.
        detail: String,
    },
    /// Two metrics have one name.
    #[error("cannot declare the metrics")]
    Metrics(#[from] prometheus::Error),
    /// Traces can't be set up.
    #[error("cannot set up traces: traces.{key}: {fault}")]
    Traces {
        /// The key under `traces`.
        key: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// A task that runs for as long as the bridge does has ended.
    #[error("the task \"{task}\" exited unexpectedly")]
    TaskEnded {
        /// The task.
        task: String,
    },
    /// The disk did not take the end of the journal in time.
    #[error("cannot close the journal within the shutdown time limit; the next start recovers it")]
    CloseTimedOut,
}

/// An open bridge that does not answer yet.
pub struct App {
    journal: Journal,
    intake: Arc<Intake>,
    forwarders: Vec<Forwarder>,
    webhook: Listener,
    admin_listener: Listener,
    admin: Admin,
    reload: Reload,
    path_secret: Option<RotatableSecret>,
    spans: spans::Task,
    config: Config,
}

impl App {
    /// Takes the addresses, opens the journal, sets up the sinks (without waiting for their brokers) and listens.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left open then.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let clock = Clock::system();
        let sink_names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        let metrics = Arc::new(declare_metrics(&sink_names)?);
        // Bound first: a second bridge on the same machine then fails on its address, with a clear word.
        let listen = |address: SocketAddr, key| move |source| Error::Listen { address, key, source };
        let server = &config.server;
        let refusals = Arc::new(Refusals::new("webhook", metrics.rejected.clone(), clock.clone()));
        let mut certificates = Vec::new();
        let terms = Terms {
            limits: Limits {
                connections: descriptors::room_for(server.max_connections),
                write: webhook::WRITE_LIMIT,
                idle: server.idle_timeout.0,
                linger: server.linger.0,
            },
            tls: open_certificates("server", server.tls.as_ref(), &mut certificates)?,
            proxies: server.proxy_protocol.then(|| TrustedProxies::new(&config.access)),
            open: metrics.connections.clone(),
            refusals: Arc::clone(&refusals),
        };
        let admin_tls = open_certificates("admin", config.admin.tls.as_ref(), &mut certificates)?;
        let webhook_error = listen(server.listen, "server.listen");
        let webhook = Bound::to(server.listen, terms).map_err(&webhook_error)?;
        let address = config.admin.listen;
        let admin_error = listen(address, "admin.listen");
        let terms = Terms::unregistered("admin", admin::LIMITS, admin_tls)?;
        let admin_listener = Bound::to(address, terms).map_err(&admin_error)?;
        let (tracer, spans) = spans::set_up(&config, &clock, &metrics)?;
        let journal = open_journal(&config, &clock, &metrics).await?;

        let (forwarders, entries) = forwarders(&config, &journal, &metrics, &clock, &tracer)?;
        let intake = Arc::new(Intake {
            access: Access::new(&config.access, &config.applications),
            normalize: config.envelope.clone(),
            journal: journal.clone(),
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
            tracer,
        });
        let path_secret = config.access.path_secret.clone().map(RotatableSecret::new);
        let admin_token = config.admin.token.clone().map(RotatableSecret::new);
        let consumers = SecretConsumers {
            intake: Arc::clone(&intake),
            path_secret: path_secret.clone(),
            admin_token: admin_token.clone(),
        };
        let files = (config.secret_files.clone(), config.client_files());
        let access = (config.access.clone(), config.applications.clone());
        let reload = Reload::new(certificates, files, access, consumers);
        let stop = CancellationToken::new();
        let (sinks, readiness): (Arc<[SinkEntry]>, _) = (entries.into(), Readiness::new(journal.clone()));
        let observer = Observer::new(Observed {
            journal: journal.clone(),
            max_bytes: config.journal.max_bytes.0,
            metrics: Arc::clone(&metrics),
            sinks: Arc::clone(&sinks),
            clock: clock.clone(),
            readiness: readiness.clone(),
            refusals,
        });
        let admin = Admin {
            feeds: Feeds::new(&journal, &stop),
            token: admin_token,
            journal: journal.clone(),
            max_bytes: config.journal.max_bytes.0,
            metrics,
            sinks,
            observer: Arc::new(observer),
            clock,
            readiness,
            stop,
            started: Instant::now(),
            documents: Documents::default(),
            page_files: PageFiles::new(),
        };
        // Last: until here a sender is refused, and tries again, instead of waiting while a journal is opened.
        let webhook = webhook.listen().map_err(webhook_error)?;
        let admin_listener = admin_listener.listen().map_err(admin_error)?;
        let admin = Admin { documents: documents(&config, &webhook, &admin_listener), ..admin };
        Ok(Self { journal, intake, forwarders, webhook, admin_listener, admin, reload, path_secret, spans, config })
    }

    /// The addresses of the webhook and the admin endpoint.
    ///
    /// # Errors
    /// When the system can't say.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.webhook.local_addr()?, self.admin_listener.local_addr()?))
    }

    /// What says how many deliveries could not be taken so far, and were answered 503 or not at all.
    pub fn refusals(&self) -> impl Fn() -> u64 + Send + use<> {
        let metrics = Arc::clone(&self.admin.metrics);
        move || {
            let answered = metrics.answer_seconds.with_label_values(&["503"]).get_sample_count();
            answered + metrics.rejected.with_label_values(&["connections"]).get()
        }
    }

    /// The journal, for those who watch from inside the process.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Runs until `stop`, or until one of its tasks ends unasked; then stops in order: no more
    /// deliveries, answer those under way, let the sinks publish what is pending for `stop.publish_for` and finish what is
    /// in flight, close the journal.
    ///
    /// # Errors
    /// [`Error::TaskEnded`], after everything was stopped; [`Error::CloseTimedOut`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { journal, intake, forwarders, webhook, admin_listener, admin, reload, path_secret, spans, config } =
            self;
        let (stop_webhook, stop_sinks, stop_admin) =
            (CancellationToken::new(), CancellationToken::new(), admin.stop.clone());
        let stop_spans = CancellationToken::new();
        let readiness = admin.readiness.clone();
        let mut tasks = Tasks::default();
        for forwarder in forwarders {
            tasks.start(format!("sink {}", forwarder.name), forwarder.forward(stop_sinks.clone()));
        }
        tasks.start("overview".into(), Arc::clone(&admin.observer).observe());
        let filter = admin::filter(Arc::new(admin));
        tasks.start("admin".into(), admin_listener.serve(filter, stop_admin.clone()));
        let refusals = webhook.refusals();
        let filter = webhook::filter(&config.server, path_secret, intake, refusals, readiness.clone());
        tasks.start("webhook".into(), webhook.serve(filter, stop_webhook.clone()));
        tasks.start("reload".into(), reload.run());
        let watched = journal.clone();
        tasks.start("journal".into(), async move { watched.ended().await });
        if let Some(spans) = spans {
            tasks.start("spans".into(), spans(stop_spans.clone()));
        }
        tracing::info!("ready");

        let ended = tokio::select! {
            () = stop.cancelled() => None,
            task = tasks.next() => Some(task),
        };
        if let Some(task) = &ended {
            tracing::error!(task, "task exited unexpectedly; shutting down");
        }
        readiness.begin_stop();
        // Where a task is missing, not all that is pending can be published.
        let publish_for = if ended.is_none() { config.stop.publish_for.0 } else { Duration::ZERO };
        let deadline = tokio::time::Instant::now() + STOP_LIMIT + publish_for;
        let in_order = async {
            stop_webhook.cancel();
            tasks.finish("webhook").await;
            publish_pending(&journal, config.sinks.keys(), publish_for).await;
            stop_sinks.cancel();
            tasks.finish("sink").await;
            // Nothing makes a span any more.
            stop_spans.cancel();
            tasks.finish("spans").await;
            stop_admin.cancel();
            tasks.finish("admin").await;
        };
        if timeout_at(deadline - CLOSE_LIMIT, in_order).await.is_err() {
            tracing::warn!("shutdown timed out; unpublished events stay in the journal");
        }
        close(journal, tasks, deadline, ended.is_some()).await?;
        ended.map_or(Ok(()), |task| Err(Error::TaskEnded { task }))
    }
}

/// Ends what tasks there still are and closes the journal. That this takes too long is an error, unless there is another one
/// to be returned.
async fn close(
    journal: Journal,
    mut tasks: Tasks,
    deadline: tokio::time::Instant,
    has_failed: bool,
) -> Result<(), Error> {
    let closing = async {
        tasks.set.shutdown().await;
        tokio::task::spawn_blocking(move || journal.close()).await
    };
    match timeout_at(deadline, closing).await {
        Ok(Ok(())) => tracing::info!("stopped"),
        Ok(Err(error)) => tracing::error!(%error, "cannot close the journal; the next start recovers it"),
        Err(_elapsed) if !has_failed => return Err(Error::CloseTimedOut),
        Err(_elapsed) => tracing::error!("{}", Error::CloseTimedOut),
    }
    Ok(())
}

/// Lets the sinks publish until nothing is pending, for as long as this.
async fn publish_pending(journal: &Journal, sinks: impl Iterator<Item = &String> + Clone, limit: Duration) {
    let pending = || sinks.clone().map(|sink| journal.pending(sink) + journal.resends(sink)).sum::<u64>();
    if limit.is_zero() || pending() == 0 {
        return;
    }
    tracing::info!(pending = pending(), limit = ?limit, "publishing what is pending before the end");
    if tokio::time::timeout(limit, nothing_pending(journal, sinks.clone())).await.is_err() {
        let pending = pending();
        tracing::warn!(pending, "not all was published within stop.publish_for; the next start goes on with the rest");
    }
}

/// Waits until no sink has anything pending or to resend.
async fn nothing_pending(journal: &Journal, sinks: impl Iterator<Item = &String> + Clone) {
    while sinks.clone().any(|sink| journal.pending(sink) > 0 || journal.resends(sink) > 0) {
        tokio::time::sleep(PENDING_CHECK).await;
    }
}

/// The tasks by name.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    names: Vec<(tokio::task::Id, String)>,
}

impl Tasks {
    fn start(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.set.spawn(task);
        self.names.push((handle.id(), name));
    }

    /// Waits for a task to end and says which; without end where there is none.
    async fn next(&mut self) -> String {
        let id = match self.set.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                // Its message may quote a delivery; where it panicked is in the log already.
                tracing::error!(panicked = error.is_panic(), "a task failed");
                error.id()
            }
        };
        let index = self.names.iter().position(|(known, _)| *known == id);
        index.map_or_else(|| "unknown".into(), |index| self.names.swap_remove(index).1)
    }

    /// Waits until no task whose name starts so is left.
    async fn finish(&mut self, prefix: &str) {
        while self.names.iter().any(|(_, name)| name.starts_with(prefix)) {
            self.next().await;
        }
    }
}

/// The documents, with the addresses that the listeners have got.
fn documents(config: &Config, webhook: &Listener, admin: &Listener) -> Documents {
    let mut shown = config.clone();
    shown.server.listen = webhook.local_addr().unwrap_or(config.server.listen);
    shown.admin.listen = admin.local_addr().unwrap_or(config.admin.listen);
    contracts::documents(&shown)
}

/// The features of this build, in order of name.
pub fn features() -> Vec<&'static str> {
    let compiled = [
        ("kafka", cfg!(feature = "kafka")),
        ("nats", cfg!(feature = "nats")),
        ("rabbitmq", cfg!(feature = "rabbitmq")),
    ];
    compiled.iter().filter(|(_, compiled)| *compiled).map(|(name, _)| *name).collect()
}

fn declare_metrics(sinks: &[&str]) -> Result<Metrics, prometheus::Error> {
    let categories: Vec<&str> = Category::LABELS.to_vec();
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    Metrics::new(&Labels {
        categories: &categories,
        rejections: reply::REASONS,
        statuses: reply::STATUSES,
        sinks,
        sink_reasons: &reasons,
        features: &features().join(","),
    })
}

/// Reads a listener's certificates, if it is to have some, and notes them for [`Reload`].
fn open_certificates(
    section: &'static str,
    settings: Option<&tls::Settings>,
    all: &mut Vec<(&'static str, Certificates)>,
) -> Result<Option<tls::Current>, Error> {
    let Some(settings) = settings else { return Ok(None) };
    let opened = Certificates::open(settings.clone());
    let certificates = opened.map_err(|faults| {
        let (key, fault) = faults.into_iter().next().unwrap_or_default();
        Error::Certificate { key: format!("{section}.{key}"), fault }
    })?;
    let current = certificates.current();
    all.push((section, certificates));
    Ok(Some(current))
}

async fn open_journal(config: &Config, clock: &Clock, metrics: &Arc<Metrics>) -> Result<Journal, Error> {
    let commits = metrics.journal_commit_seconds.clone();
    let reconciled = metrics.reconciled.clone();
    let by_type = Category::ALL.map(|category| (event_type(category.label()), category.label()));
    let sinks = config.sinks.iter().map(|(name, sink)| SinkSpec { name: name.clone(), kinds: sink.kinds() });
    let options = journal::Options {
        settings: config.journal.clone(),
        dedup: config.dedup.clone(),
        sinks: sinks.collect(),
        clock: clock.clone(),
        on_commit: Box::new(move |took| commits.observe(took.as_secs_f64())),
        backfill: journal::Hook {
            fact_of: reconcile::fact_of,
            on_stored: Box::new(move |kind| {
                let known = by_type.iter().find(|(known, _)| known == kind::type_of(kind));
                reconciled.with_label_values(&[known.map_or(Category::Other.label(), |(_, label)| label)]).inc();
            }),
        },
    };
    match tokio::task::spawn_blocking(move || Journal::open(options)).await {
        Ok(journal) => Ok(journal?),
        Err(error) => Err(Error::TaskEnded { task: format!("open the journal: {error}") }),
    }
}

/// Makes what publishes to each sink, and what others may see of it; nothing is connected yet.
fn forwarders(
    config: &Config,
    journal: &Journal,
    metrics: &Arc<Metrics>,
    clock: &Clock,
    tracer: &Tracer,
) -> Result<(Vec<Forwarder>, Vec<SinkEntry>), Error> {
    let mut forwarders = Vec::new();
    let mut entries = Vec::new();
    for (name, sink) in &config.sinks {
        let status = Arc::new(SinkStatus::default());
        entries.push(SinkEntry { name: name.clone(), kind: sink.kind.label(), status: Arc::clone(&status) });
        forwarders.push(Forwarder {
            name: name.clone(),
            sink: make_sink(name, sink, config)?,
            kinds: sink.kinds(),
            journal: journal.clone(),
            metrics: Arc::clone(metrics),
            clock: clock.clone(),
            status,
            publisher: tracer.publisher(sink.kind.destination(name)),
        });
    }
    Ok((forwarders, entries))
}

/// The largest event that a delivery can become, in bytes: the delivery as it was received, what was read from it, and the
/// envelope's attributes.
#[cfg(feature = "kafka")]
fn largest_event(config: &Config) -> u64 {
    2 * config.server.max_body.0 + 16 * 1024
}

/// Makes one of the sinks of a configuration; nothing is connected yet.
///
/// # Errors
/// [`Error::Sink`].
#[cfg_attr(
    not(any(feature = "kafka", feature = "rabbitmq", feature = "nats")),
    expect(unused_variables, reason = "standard output has no client that a name is for")
)]
pub fn make_sink(name: &str, sink: &SinkConfig, config: &Config) -> Result<Box<dyn Sink>, Error> {
    #[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
    let failed = |faults: Vec<(String, String)>| {
        let faults: Vec<String> = faults.into_iter().map(|(key, message)| format!("{key}: {message}")).collect();
        Error::Sink { name: name.to_owned(), detail: faults.join("; ") }
    };
    #[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
    let known = sink.known_values(sink.known_applications(&config.access));
    match &sink.kind {
        SinkKind::Stdout(stdout::Settings {}) => Ok(Box::new(stdout::Stdout::new(sink.format))),
        #[cfg(feature = "kafka")]
        SinkKind::Kafka(settings) => crate::sink::kafka::Kafka::new(
            name,
            settings.clone(),
            sink.format,
            known,
            largest_event(config),
            Clock::system(),
        )
        .map(|sink| Box::new(sink) as Box<dyn Sink>)
        .map_err(failed),
        #[cfg(feature = "rabbitmq")]
        SinkKind::Rabbitmq(settings) => {
            crate::sink::rabbitmq::RabbitMq::new(name, settings.clone(), sink.format, known)
                .map(|sink| Box::new(sink) as Box<dyn Sink>)
                .map_err(failed)
        }
        #[cfg(feature = "nats")]
        SinkKind::Nats(settings) => crate::sink::nats::Nats::new(name, settings.clone(), sink.format, known)
            .map(|sink| Box::new(sink) as Box<dyn Sink>)
            .map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::config::Loaded;

    async fn ready(admin: SocketAddr) -> String {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_of_the_journals_writer_stops_the_service_in_order() {
        let home = tempfile::tempdir().unwrap();
        let keys = [
            ("ACCESS__OPEN", "true".to_owned()),
            ("SERVER__LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("JOURNAL__DIR", home.path().join("journal").display().to_string()),
        ];
        let environment = keys.into_iter().map(|(key, value)| (format!("SENDBIRD_BRIDGE_{key}").into(), value.into()));
        let app = App::bind(Loaded::load(None, environment).unwrap().config).await.unwrap();
        let (_, admin) = app.addresses().unwrap();
        let journal = app.journal().clone();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(app.run(CancellationToken::new()));
        assert!(ready(admin).await.starts_with("HTTP/1.1 200"));
        tokio::task::spawn_blocking(move || journal.panic()).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), running.join_next()).await.expect("in time");
        let ended = ended.expect("it was started").unwrap();
        assert!(matches!(&ended, Err(Error::TaskEnded { task }) if task == "journal"), "{ended:?}");
        assert!(TcpStream::connect(admin).await.is_err(), "it does not listen any more");
    }
}
