//! Settings that can be meant as they are, and most often are not. `config check` and `serve` print a warning for each.

use super::{Config, Fault, SinkConfig, nearest};
use crate::domain::glob;
use crate::domain::units::Span;
use crate::sendbird::category::Category;

/// Sendbird waits this long for an answer.
const SENDBIRD_WAITS: Span = Span::from_secs(1);

/// The warnings about a configuration.
pub(super) fn of(config: &Config) -> Vec<Fault> {
    let mut warnings = Vec::new();
    let mut warn = |key: String, message: String| warnings.push(Fault { key, message, source: None });
    if !config.access.has_authentication(&config.applications) {
        warn("access.open".into(), "ANYBODY who can reach this bridge can deliver events".into());
    }
    let deadline = config.server.answer_deadline;
    if deadline >= SENDBIRD_WAITS {
        let message =
            format!("Sendbird gives up after {SENDBIRD_WAITS}, but found {deadline}; answers may come too late");
        warn("server.answer_deadline".into(), message);
    }
    // A record holds the body, escaped in the worst case, and what was read out of it.
    let (body, journal) = (config.server.max_body, config.journal.max_bytes);
    if body.0.saturating_mul(4) > journal.0 {
        let message =
            format!("a body of {body} may not fit into journal.max_bytes ({journal}), and is then answered 503");
        warn("server.max_body".into(), message);
    }
    if config.sinks.is_empty() {
        let message = "no sinks are configured: events are kept in the journal and can be read from the feed";
        warn("sinks".into(), message.into());
    }
    for (name, sink) in &config.sinks {
        for pattern in unknown_categories(sink) {
            let hint = nearest(pattern, &Category::LABELS).map(|label| format!("; did you mean \"{label}\"?"));
            let hint = hint.unwrap_or_default();
            let message = format!("no category that this version knows is called \"{pattern}\"{hint}");
            warn(format!("sinks.{name}.categories"), message);
        }
        #[cfg(feature = "kafka")]
        if let super::SinkKind::Kafka(settings) = &sink.kind
            && settings.topic.contains("{application_id}")
            && sink.known_applications(&config.access).is_empty()
        {
            let message = "each application has topics of its own, and access.applications does not say which there are; \
                           events of an application whose topics do not exist wait";
            warn(format!("sinks.{name}.topic"), message.into());
        }
    }
    warnings
}

fn unknown_categories(sink: &SinkConfig) -> impl Iterator<Item = &String> {
    sink.categories.iter().filter(|pattern| !Category::LABELS.iter().any(|label| glob::matches(pattern, label)))
}
