//! `status` and `top`: how a running bridge is, in one sentence and a table.

use std::io::IsTerminal;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};

use super::admin::{Admin, AdminArgs};
use super::output::OutputArgs;
use super::table::table;
use super::{Failure, print};
use crate::config::Loaded;
use crate::domain::clock::rfc3339;
use crate::domain::units::{age, grouped};
use crate::http::overview::{Moment, Overview, Sink, State};

/// How often `top` asks.
const PERIOD: Duration = Duration::from_secs(1);

/// How long the bridge may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// So many reasons of refusals are named; `--output json` has all.
const MOST_REASONS: usize = 3;

/// How a running bridge is, in one sentence, and what to do; exit code 1 if something needs a person
///
/// The rules are those of the alerts (docs/runbook.md). It asks the admin endpoint that the configuration names, so in a
/// container it needs no arguments. Totals are since the start of the bridge.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: AdminArgs,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: Args, loaded: Loaded) -> Result<(), Failure> {
    let admin = args.admin.resolve(loaded)?;
    let (text, overview) = ask(&admin).await?;
    print(&if args.output.is_json() { format!("{text}\n") } else { describe(&overview) })?;
    let alerts: Vec<&str> = overview.verdict.findings.iter().map(|finding| finding.alert.as_str()).collect();
    if overview.verdict.needs_a_person {
        return Err(Failure::Failed(format!("a person is needed: {}", alerts.join(", "))));
    }
    Ok(())
}

pub(super) async fn top(args: TopArgs, loaded: Loaded) -> Result<(), Failure> {
    let admin = args.admin.resolve(loaded)?;
    let is_terminal = std::io::stdout().is_terminal();
    let mut was_there = false;
    loop {
        let text = match ask(&admin).await {
            Ok((_, overview)) => {
                was_there = true;
                describe(&overview)
            }
            // A bridge that restarts is waited for; one that never was there is not.
            Err(Failure::Other(error)) if was_there => format!("{error}\n"),
            Err(failure) => return Err(failure),
        };
        // To the beginning, and nothing of what was there before.
        let text = if is_terminal { format!("\u{1b}[H\u{1b}[2J{text}") } else { format!("{text}\n") };
        if !print(&text)? {
            return Ok(());
        }
        sleep(PERIOD).await;
    }
}

/// The answer as it came, and read.
async fn ask(admin: &Admin) -> Result<(String, Overview), Failure> {
    let answer = async {
        let response = admin.get("/overview", None).await?;
        Ok(response.into_body().collect().await.map_err(Failure::other)?.to_bytes())
    };
    // A process that stands still takes connections and never answers.
    let body = timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_elapsed| {
        let seconds = ANSWER_WITHIN.as_secs();
        Err(Failure::other(format!(
            "expected an answer of the bridge within {seconds} s, but there was none: does its process hang?"
        )))
    })?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let overview = serde_json::from_str(&text).map_err(|error| {
        Failure::Failed(format!(
            "expected an overview of a bridge of version {}, but: {error}",
            env!("CARGO_PKG_VERSION")
        ))
    })?;
    Ok((text, overview))
}

/// The sentence, then a table, then what to do.
fn describe(overview: &Overview) -> String {
    let Overview { verdict, state } = overview;
    let mut text = format!("{}\n\n", verdict.sentence);
    let up = age(state.started_at.seconds_until(state.at));
    let ready = if state.ready { "ready" } else { "not ready" };
    let mut line = |name: &str, value: String| text += &format!("{name:<11}{value}\n");
    line("bridge", format!("sendbird-bridge {}, up {up}, {ready}", state.version));
    line("receiving", receiving(state));
    line("refused", refused(state));
    line("journal", journal(state));
    let rows: Vec<Vec<String>> = state.sinks.iter().map(|sink| row(sink, state.at)).collect();
    if !rows.is_empty() {
        let names = ["SINK", "CONNECTED", "PENDING", "OLDEST", "CAUGHT UP", "RATE", "STUCK", "DEAD"];
        text += &format!("\n{}", table(&names, rows));
    }
    let failures = state.sinks.iter().filter_map(|sink| Some((sink, sink.last_failure.as_ref()?)));
    for (sink, failure) in failures {
        let ago = age(failure.at.seconds_until(state.at));
        let since = sink.failing_since.map_or_else(
            || "works again".into(),
            |since| format!("failing for {}", age(since.seconds_until(state.at))),
        );
        text += &format!("\n{}: {since}; last failure {ago} ago: {}: {}\n", sink.name, failure.reason, failure.detail);
    }
    for finding in &verdict.findings {
        text += &format!("\n{}: {}\n  do: {}\n", finding.alert, finding.text, finding.action);
    }
    text
}

fn ago(at: Option<Moment>, now: Moment) -> String {
    at.map_or_else(|| "none since the start".into(), |at| format!("{} ago", age(at.seconds_until(now))))
}

fn receiving(state: &State) -> String {
    let mut text = format!("last delivery {}", ago(state.deliveries.last_at, state.at));
    for window in &state.deliveries.windows {
        text += &format!("; {:.1}/s in {}", window.deliveries_per_second, age(window.seconds as f64));
    }
    let p99 = state.window(300).answer_seconds_p99;
    text + &p99.map_or_else(String::new, |p99| format!("; answers p99 {:.0} ms", p99 * 1000.0))
}

fn refused(state: &State) -> String {
    let mut lately: Vec<_> = state.refused.iter().filter(|refused| refused.last_hour > 0).collect();
    lately.sort_by_key(|refused| std::cmp::Reverse(refused.last_hour));
    if lately.is_empty() {
        return "nothing within the last hour".into();
    }
    let named = lately.iter().take(MOST_REASONS);
    let named: Vec<String> = named.map(|r| format!("{} {}", grouped(r.last_hour), r.reason)).collect();
    let mut text = format!("last hour: {}", named.join(", "));
    if lately.len() > MOST_REASONS {
        text += &format!(", {} other reasons", lately.len() - MOST_REASONS);
    }
    if let Some(last) = lately.iter().max_by_key(|refused| refused.last_at) {
        let at = last.last_at.and_then(|at| rfc3339(at.0)).unwrap_or_default();
        text += &format!("; last {at} from {}", last.last_source.as_deref().unwrap_or("an unknown address"));
    }
    text
}

fn journal(state: &State) -> String {
    let journal = &state.journal;
    let size = |bytes| indicatif::BinaryBytes(bytes);
    let left = journal.full_in_seconds.map_or_else(String::new, |left| format!(", full in {} at this rate", age(left)));
    let (used, most, free) = (size(journal.stats.bytes), size(journal.max_bytes), size(journal.stats.disk_free_bytes));
    format!("{} events, {used} of {most}{left}; disk: {free} free", grouped(journal.stats.records))
}

fn row(sink: &Sink, now: Moment) -> Vec<String> {
    let since = age(sink.connected_changed_at.seconds_until(now));
    let connected = if sink.connected { "yes".into() } else { format!("NO, {since}") };
    let oldest = if sink.pending_records == 0 { "-".into() } else { age(sink.oldest_pending_seconds) };
    let caught_up = match sink.caught_up_in_seconds {
        Some(0.0) => "yes".into(),
        Some(left) => format!("in {}", age(left)),
        None => "no".into(),
    };
    vec![
        sink.name.clone(),
        connected,
        grouped(sink.pending_records),
        oldest,
        caught_up,
        format!("{:.1}/s", sink.published_per_second),
        grouped(sink.stuck_records),
        grouped(sink.dead_letters_total),
    ]
}
