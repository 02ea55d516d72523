//! Publishing what a stopped bridge has left: its sinks run, and nothing else does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    CLOSE_LIMIT, Error, STOP_LIMIT, Tasks, close, declare_metrics, forwarders, nothing_pending, open_journal, spans,
};
use crate::config::Config;
use crate::domain::clock::Clock;

/// What a sink has left of a journal that was drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The sink.
    pub sink: String,
    /// Events that it has not published.
    pub pending: u64,
    /// Those of them that are stuck.
    pub stuck: u64,
    /// Replays and requeued dead letters that it has not published.
    pub to_resend: u64,
    /// Why it failed last, if it has failed and not succeeded since.
    pub last_failure: Option<String>,
}

impl Left {
    /// Whether nothing is.
    pub fn is_nothing(&self) -> bool {
        self.pending == 0 && self.to_resend == 0
    }
}

/// Opens the journal of a bridge that does not run, publishes what its sinks have pending or to resend, until nothing is
/// left, `limit` has passed or `stop`, and closes it. No address is bound.
///
/// # Errors
/// As for [`super::App::bind`] and [`super::App::run`].
pub async fn drain(config: &Config, limit: Duration, stop: CancellationToken) -> Result<Vec<Left>, Error> {
    let clock = Clock::system();
    let names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
    let metrics = Arc::new(declare_metrics(&names)?);
    let (tracer, spans) = spans::set_up(config, &clock, &metrics)?;
    let journal = open_journal(config, &clock, &metrics).await?;
    let (forwarders, entries) = forwarders(config, &journal, &metrics, &clock, &tracer)?;
    let (stop_sinks, stop_spans) = (CancellationToken::new(), CancellationToken::new());
    let mut tasks = Tasks::default();
    for forwarder in forwarders {
        tasks.start(format!("sink {}", forwarder.name), forwarder.forward(stop_sinks.clone()));
    }
    if let Some(spans) = spans {
        tasks.start("spans".into(), spans(stop_spans.clone()));
    }
    let end = Instant::now() + limit;
    let ended = tokio::select! {
        () = nothing_pending(&journal, config.sinks.keys()) => None,
        () = sleep_until(end) => None,
        () = stop.cancelled() => None,
        task = tasks.next() => Some(task),
    };
    let deadline = Instant::now() + STOP_LIMIT;
    let in_order = async {
        stop_sinks.cancel();
        tasks.finish("sink").await;
        stop_spans.cancel();
        tasks.finish("spans").await;
    };
    if timeout_at(deadline - CLOSE_LIMIT, in_order).await.is_err() {
        tracing::warn!("shutdown timed out; unpublished events stay in the journal");
    }
    let left = entries.iter().map(|entry| Left {
        sink: entry.name.clone(),
        pending: journal.pending(&entry.name),
        stuck: entry.status.stuck(),
        to_resend: journal.resends(&entry.name),
        last_failure: entry.status.last_failure(),
    });
    let left = left.collect();
    close(journal, tasks, deadline, ended.is_some()).await?;
    ended.map_or(Ok(left), |task| Err(Error::TaskEnded { task }))
}
