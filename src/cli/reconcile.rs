//! `reconcile`: what an outage of the receiver lost, asked of the Calls Platform API.
//!
//! It compares what the API knows of a time with what the journal has, says what is missing, and with `--publish`
//! adds a backfill candidate for each, which the bridge stores in the journal. It promises that nothing is called missing
//! on a guess, and that of a fact there is one event, also when it is interrupted, run twice, or run beside itself.

mod peer_feeds;
mod reconciler;
mod state;
pub(super) mod timer;

use std::collections::BTreeSet;
use std::path::PathBuf;

use self::reconciler::Reconciler;
use self::state::{Counts, RunScope, State};
use super::output::{Output, OutputArgs};
use super::platform::{Http, PlatformArgs, explain};
use super::select::{JournalArgs, time};
use super::table::{counted, progress_bar};
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::{Clock, rfc3339};
use crate::domain::units::Span;
use crate::journal::{Filter, JournalAdmin, Row};
use crate::sendbird::api::Api;
use crate::sendbird::category::Category;
use crate::sendbird::reconcile::FactKind;
use crate::sendbird::reconcile::seen_facts::{MARGIN_MS, SeenFacts};

/// Find events that were lost during an outage through Sendbird's API, and publish them
///
/// Nothing is changed without --publish. It can find dials, answers and ends of calls, rooms made and deleted,
/// participants entered and left; not invitations, which the API does not know. It compares with what the journal keeps
/// (journal.retain_for), so run this within that time after an outage. Where several bridges share the deliveries, each
/// with its own journal, run it on one of them and give it the events of all the others with --also.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 nothing is missing, or all of it is left to the bridge; 1 something is missing, \
                        or not known, or it failed; 64 wrong usage."
)]
pub(super) struct Args {
    #[command(flatten)]
    platform: PlatformArgs,

    #[command(flatten)]
    journal: JournalArgs,

    /// Start of the outage: RFC 3339, or how long ago, as in "2h"
    #[arg(long, value_name = "TIME", value_parser = time, required_unless_present = "resume")]
    since: Option<i64>,

    /// Where the journal does not keep everything since --since, begin with what it keeps; and where it keeps nothing, do
    /// nothing. Without it, that is an error
    #[arg(long, requires = "since")]
    or_later: bool,

    /// End; by default, and at the latest, five minutes ago, as younger events may still be delivered
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,

    /// Publish an event for each that is missing, marked as `reconciled`; a running bridge stores them within
    /// seconds, a stopped one when it starts
    #[arg(long)]
    publish: bool,

    /// Only this category (repeatable); by default those that Sendbird's webhook settings enable now
    #[arg(long, value_name = "CATEGORY")]
    category: Vec<Category>,

    /// Also check calls and rooms that began up to this long before --since
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    lookback: Span,

    /// Events of the other bridges, as their `tail --no-follow` prints them, a blank line between two bridges; "-" is
    /// standard input (repeatable)
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,

    /// Resume the last interrupted run, with its arguments
    #[arg(long, conflicts_with_all = ["since", "until", "publish", "category"])]
    resume: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: Args, load: impl Fn() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    let config = load()?.config;
    let mut api = args.platform.open(&load)?.api;
    let mut journal = args.journal.open(&load)?;
    let dir = args.journal.dir(&load)?;
    let (seen, others) = seen_facts(&mut journal, &args.also)?;
    let state = match args.resume {
        true => State::load(&dir)?,
        false => match scope(&args, &mut api, &seen, others).await? {
            Some(scope) => State::begin(scope),
            None => {
                eprintln!("the journal has no complete record of that time, so nothing can be called missing");
                return conclude(&Counts::default(), args.publish, args.output.output);
            }
        },
    };
    if state.scope.others != others {
        let message = format!("of {} other bridges, as in the interrupted run, but found {others}", state.scope.others);
        return Err(Failure::Usage(format!("expected --also with the events {message}")));
    }
    check_application(&config.access.applications, &state.scope.application, api.application().as_str())?;
    let upper = state.scope.application.to_ascii_uppercase();
    let application = seen.spelling(&upper).map_or(upper.clone(), str::to_owned);
    let span = state.scope.until_ms.saturating_sub(state.scope.begin_ms());
    let span = u64::try_from(span).unwrap_or(1);
    let mut reconciler = Reconciler {
        api,
        journal,
        seen,
        application,
        settings: config.envelope,
        clock: Clock::system(),
        dir,
        bar: progress_bar(span, "{bar:30} {elapsed}  {msg}"),
        json: args.output.is_json(),
        state,
    };
    eprintln!("{}", describe(&reconciler.state.scope));
    let ended = reconciler.run().await;
    reconciler.bar.finish_and_clear();
    let Reconciler { state, dir, .. } = reconciler;
    if let Err(failure) = ended {
        eprintln!("interrupted; go on with: sendbird-bridge reconcile --resume");
        return Err(failure);
    }
    State::done(&dir);
    conclude(&state.counts, state.scope.publish, args.output.output)
}

/// The facts that are stored here, have a candidate here, or are stored by other bridges; and how many those are.
fn seen_facts(journal: &mut JournalAdmin, also: &[PathBuf]) -> Result<(SeenFacts, usize), Failure> {
    let mut seen = SeenFacts::default();
    // Before the records: a candidate that is stored meanwhile is a record then.
    seen.add_candidates(journal.candidate_facts()?);
    // What is released from now on shows as a gap.
    let complete_from = journal.summary()?.complete_from;
    seen.complete_from(complete_from.map(|(_, accepted_ms)| accepted_ms));
    read_on(journal, &mut seen)?;
    let mut others = 0;
    for file in also {
        others += peer_feeds::read(file, &mut seen)?;
    }
    Ok((seen, others))
}

/// Reads the records that have come since.
fn read_on(journal: &mut JournalAdmin, seen: &mut SeenFacts) -> Result<(), Failure> {
    journal.refresh()?;
    let after = seen.through();
    let add = |rows: &[Row]| {
        for row in rows {
            match row {
                Row::Intact(record) => seen.add_record(record.position, record.accepted_ms, &record.payload),
                Row::Damaged { position, .. } => seen.add_damaged(*position),
            }
        }
    };
    let through = journal.select_after(after, &Filter::default(), add)?;
    seen.end(through);
    Ok(())
}

/// What to look for, once it is sure that it makes sense; `None` if nothing can be found, and that is no error.
async fn scope(args: &Args, api: &mut Api<Http>, seen: &SeenFacts, others: usize) -> Result<Option<RunScope>, Failure> {
    let settled_ms = Clock::system().now_ms().saturating_sub(MARGIN_MS);
    let at = |ms| rfc3339(ms).unwrap_or_else(|| format!("{ms} ms"));
    let mut since_ms = args.since.ok_or_else(|| Failure::Usage("expected --since or --resume".into()))?;
    let until_ms = args.until.unwrap_or(settled_ms);
    if until_ms > settled_ms {
        let message = format!("expected --until {} or earlier, but found {}", at(settled_ms), at(until_ms));
        return Err(Failure::Usage(format!("{message}: what is younger may still be delivered")));
    }
    if since_ms >= until_ms {
        return Err(Failure::Usage(format!("expected --since before {}, but found {}", at(until_ms), at(since_ms))));
    }
    match seen.since_ms() {
        None if args.or_later => return Ok(None),
        Some(first) if args.or_later && first >= until_ms => return Ok(None),
        Some(first) if args.or_later => since_ms = since_ms.max(first),
        None => {
            let message = "the journal has no complete record, so nothing can be called missing";
            return Err(Failure::Failed(format!("{message}; --or-later makes that no error")));
        }
        Some(first) if first >= until_ms => {
            return Err(Failure::Failed(format!(
                "the journal keeps everything only since {} (five minutes after its first event), so there is nothing to \
                 reconcile yet; --or-later makes that no error",
                at(first)
            )));
        }
        Some(first) if first > since_ms => {
            return Err(Failure::Failed(format!(
                "expected --since {} or later, as a journal does not keep everything that was accepted earlier, but \
                 found {}; --or-later begins there",
                at(first),
                at(since_ms)
            )));
        }
        Some(_) => {}
    }
    let kinds = if args.category.is_empty() { enabled(api).await? } else { named(&args.category)? };
    Ok(Some(RunScope {
        application: api.application().to_string(),
        since_ms,
        until_ms,
        publish: args.publish,
        kinds,
        lookback_ms: args.lookback.as_millis(),
        others,
    }))
}

/// What Sendbird delivers, of what can be found. That a participant left is one of two categories, and the API
/// does not say which, so it can be missing only where both are enabled.
async fn enabled(api: &mut Api<Http>) -> Result<BTreeSet<FactKind>, Failure> {
    let webhook = api.webhook(false).await.map_err(|failure| explain(&failure, api))?;
    if webhook.enabled == Some(false) {
        let message = "the webhook is not enabled at Sendbird, so no delivery is missing";
        return Err(Failure::Failed(format!("{message}; to look all the same, name events with --category")));
    }
    let Some(events) = webhook.enabled_events else {
        return Err(Failure::Failed(
            "Sendbird does not say which events are enabled; name them with --category".into(),
        ));
    };
    let is =
        |category: Category| events.iter().any(|event| event == "*" || event.eq_ignore_ascii_case(category.label()));
    let kinds: BTreeSet<FactKind> = FactKind::ALL
        .into_iter()
        .filter(|kind| Category::ALL.into_iter().filter(|of| FactKind::by(*of) == Some(*kind)).all(is))
        .collect();
    match kinds.is_empty() {
        true => Err(Failure::Failed("none of the events that are enabled at Sendbird can be found by its API".into())),
        false => Ok(kinds),
    }
}

fn named(categories: &[Category]) -> Result<BTreeSet<FactKind>, Failure> {
    let kind = |category: &Category| {
        FactKind::by(*category)
            .ok_or_else(|| Failure::Usage(format!("{category} cannot be found: Sendbird's API does not know of it")))
    };
    categories.iter().map(kind).collect()
}

/// Of an application whose deliveries are refused nothing is missing.
fn check_application(allowed: &[String], application: &str, asked: &str) -> Result<(), Failure> {
    if application != asked {
        return Err(Failure::Usage(format!("expected {application}, as in the interrupted run, but found {asked}")));
    }
    if allowed.is_empty() || allowed.iter().any(|known| known.eq_ignore_ascii_case(application)) {
        return Ok(());
    }
    Err(Failure::Usage(format!("expected one of access.applications, but found {application}")))
}

fn describe(scope: &RunScope) -> String {
    let at = |ms| rfc3339(ms).unwrap_or_default();
    let categories: Vec<&str> = scope.kinds.iter().map(|kind| kind.category().label()).collect();
    let (since, until) = (at(scope.since_ms), at(scope.until_ms));
    format!("{}: from {since} until {until}, {}", scope.application, categories.join(", "))
}

/// The sums, and whether it is well.
fn conclude(counts: &Counts, publish: bool, output: Output) -> Result<(), Failure> {
    print(&match output {
        Output::Json => format!("{}\n", serde_json::json!({ "summary": counts })),
        Output::Table => sums(counts, publish),
    })?;
    if counts.unknown > 0 {
        return Err(Failure::Failed(format!(
            "{} may be missing: the journal has no record of that time",
            counted(counts.unknown, "event")
        )));
    }
    let missing: u64 = counts.missing.values().sum();
    if missing > 0 && !publish {
        return Err(Failure::Failed(format!("{} missing; publish with --publish", counted(missing, "event"))));
    }
    Ok(())
}

fn sums(counts: &Counts, publish: bool) -> String {
    let Counts { calls, rooms, participants, stored, candidates, missing, queued, unknown, without_time } = counts;
    let [calls, rooms, participants] =
        [(*calls, "call"), (*rooms, "room"), (*participants, "participant")].map(|(count, what)| counted(count, what));
    let mut text = format!("{calls}, {rooms}, {participants} of that time\n");
    text += &format!("{stored:>8} events are stored\n");
    for (category, count) in missing {
        text += &format!("{count:>8} are missing: {category}\n");
    }
    for (count, what) in [
        (*candidates, "were left to the bridge before, which has yet to store them"),
        (*unknown, "may be stored or missing: the journal does not say"),
        (*without_time, "happened at a time that Sendbird does not say, and were not looked for"),
    ] {
        if count > 0 {
            text += &format!("{count:>8} {what}\n");
        }
    }
    if publish {
        text += &format!("{queued:>8} are left to the bridge: it publishes them within seconds, or when it starts\n");
    }
    text
}
