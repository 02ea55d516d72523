//! Spans, if this build has them and the configuration wants them: what makes them, and the task that sends them.

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::metrics::Metrics;
use crate::traces::Tracer;

/// The task that sends spans, where there are any, until it is asked to stop.
pub(super) type Task = Option<Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()> + Send>>;

/// Makes what makes spans and what sends them; nothing is connected yet.
pub(super) fn set_up(config: &Config, clock: &Clock, metrics: &Metrics) -> Result<(Tracer, Task), Error> {
    use crate::traces::export;
    let Some(settings) = &config.traces else { return Ok((Tracer::default(), None)) };
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let path = config.server.path.clone();
    let path = match &config.access.path_secret {
        None => path,
        Some(_) => format!("{}/{}", path.trim_end_matches('/'), export::PATH_SECRET),
    };
    let made = export::new(settings, export::Webhook { scheme, path }, clock.clone(), metrics.declare_spans()?);
    let (tracer, exporter) = made.map_err(|(key, fault)| Error::Traces { key, fault })?;
    tracing::info!(endpoint = settings.endpoint, sample = settings.sample, "exporting traces");
    Ok((tracer, Some(Box::new(move |stop| Box::pin(exporter.run(stop))))))
}
