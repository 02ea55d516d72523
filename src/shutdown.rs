//! Shutdown on SIGTERM and SIGINT: gracefully on the first signal, immediately on the second.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// From now on, SIGTERM and SIGINT cancel `stop` as long as the future is polled; a second signal ends the
/// process there and then, which loses nothing that was answered 200, as a crash does not.
///
/// # Errors
/// When the system can't deliver signals.
pub fn on_signal(stop: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if first {
                tracing::info!(signal = name, "shutting down; signal again to exit immediately");
                stop.cancel();
            } else {
                tracing::warn!(signal = name, "exited immediately on the second signal");
                std::process::exit(1);
            }
        }
    })
}
