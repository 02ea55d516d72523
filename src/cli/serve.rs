//! `serve`: the bridge, until a signal.

use std::convert::Infallible;
use std::future::pending;
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::Failure;
use super::reconcile::timer::Timer;
use crate::app::App;
use crate::config::Loaded;
use crate::domain::clock::Clock;
use crate::journal;
use crate::shutdown;

/// Runs with a configuration that comes from `file`, where there is one, and from the environment.
pub(super) async fn run(loaded: Loaded, file: Option<&Path>) -> Result<(), Failure> {
    let Loaded { config, warnings, .. } = loaded;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    for warning in journal::inspect(&config.journal).warnings {
        tracing::warn!("journal.dir: {warning}");
    }
    // Before anything is opened, so that a signal at any time leads to a stop in order.
    let stop = CancellationToken::new();
    let signalled = shutdown::on_signal(stop.clone()).map_err(Failure::other)?;
    let path = config.server.path.clone();
    let secret = if config.access.path_secret.is_some() { "/<path_secret>" } else { "" };
    let sinks: Vec<String> =
        config.sinks.iter().map(|(name, sink)| format!("{name} ({})", sink.kind.label())).collect();
    let scheme = |tls: bool| if tls { "https" } else { "http" };
    let (webhook_scheme, admin_scheme) = (scheme(config.server.tls.is_some()), scheme(config.admin.tls.is_some()));
    let journal = config.journal.dir.clone();
    let methods = config.access.authentication_methods(&config.applications);
    let reconcile = config.reconcile.clone();
    let application = reconcile.as_ref().and_then(|it| it.application(&config.access.applications)).map(str::to_owned);
    let app = App::bind(config).await.map_err(Failure::other)?;
    let (webhook, admin) = app.addresses().map_err(Failure::other)?;
    let clock = Clock::system();
    let timer = reconcile.zip(application).map(|(settings, application)| Timer {
        settings,
        application,
        config: file.map(Path::to_owned),
        dir: journal.clone(),
        refusals: app.refusals(),
        begun_ms: clock.now_ms(),
        clock,
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        webhook = format!("{webhook_scheme}://{webhook}{path}{secret}"),
        admin = format!("{admin_scheme}://{admin}"),
        access = (!methods.is_empty()).then(|| methods.join(", ")),
        journal = %journal.display(),
        config = file.map(|file| file.display().to_string()),
        "listening"
    );
    if !sinks.is_empty() {
        tracing::info!(sinks = sinks.join(", "), "publishing");
    }
    tokio::select! {
        stopped = app.run(stop) => stopped.map_err(Failure::other),
        () = signalled => Ok(()),
        never = reconcile_after_gaps(timer) => match never {},
    }
}

async fn reconcile_after_gaps(timer: Option<Timer<impl Fn() -> u64>>) -> Infallible {
    match timer {
        Some(timer) => timer.run().await,
        None => pending().await,
    }
}
