//! `reconcile`: what an outage of the receiver lost, asked of the Calls Platform API.
//!
//! It compares what the API knows of a time with what the journal tells, says what is missing, and with `--publish`
//! offers an event for each to the bridge, which takes it into the journal. It promises that nothing is called missing
//! on a guess, and that of a fact there is one event, also when it is interrupted, run twice, or run beside itself.

mod others;
mod state;
pub(super) mod timer;
mod walk;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::state::{Counts, State, What};
use self::walk::Walker;
use super::platform::{Http, PlatformArgs, explain};
use super::select::{Place, time};
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::{Clock, rfc3339};
use crate::domain::units::Span;
use crate::journal::{Desk, Filter, Row};
use crate::sendbird::api::Api;
use crate::sendbird::category::Category;
use crate::sendbird::reconcile::Told;
use crate::sendbird::reconcile::known::{Known, MARGIN_MS};

/// Ask Sendbird what an outage of the receiver lost, and publish it
///
/// Nothing is changed without --publish. What can be found so are dials, answers and ends of calls, rooms made and
/// deleted, participants entered and left; invitations can't, as the API does not know them. The journal tells of
/// what it keeps (journal.retain_for), so run this within that time after an outage. Where several bridges share the
/// deliveries, each with its own journal, run it on one of them and show it the events of all others with --also.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 nothing is missing, or all of it is offered to the bridge; 1 something is missing, \
                        or not known, or it failed; 64 wrong usage."
)]
pub(super) struct Args {
    #[command(flatten)]
    platform: PlatformArgs,

    #[command(flatten)]
    place: Place,

    /// From then on: RFC 3339, or how long ago, as in "2h"
    #[arg(long, value_name = "TIME", value_parser = time, required_unless_present = "resume")]
    since: Option<i64>,

    /// Where the journal does not keep all since --since, begin with what it keeps; and where it tells of nothing, do
    /// nothing. Without it, that is an error
    #[arg(long, requires = "since")]
    or_later: bool,

    /// Until then, at the latest five minutes ago, which is the default: what is younger may still be delivered
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,

    /// Publish an event for each that is missing, marked with reconciled="true"; a running bridge takes them within
    /// seconds, a stopped one when it starts
    #[arg(long)]
    publish: bool,

    /// Only this category (repeatable); by default those that Sendbird's webhook settings enable now
    #[arg(long, value_name = "CATEGORY", value_parser = category)]
    category: Vec<Category>,

    /// Look also at calls and rooms that began so long before --since
    #[arg(long, value_name = "SPAN", default_value = "24h")]
    lookback: Span,

    /// Events of the other bridges, as their `tail --no-follow` prints them, a blank line between two bridges; "-" is
    /// standard input (repeatable)
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,

    /// Go on where the last run was interrupted, with its arguments
    #[arg(long, conflicts_with_all = ["since", "until", "publish", "category"])]
    resume: bool,

    /// How the result is written
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// How the result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each event that is missing, as JSON, and one with the sums
    Json,
    /// The same for reading
    Table,
}

pub(super) async fn run(args: Args, load: impl Fn() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    let config = load()?.config;
    let mut api = args.platform.open(&load)?.api;
    let desk = args.place.open(&load)?;
    let dir = args.place.dir(&load)?;
    let (known, others) = known(&desk, &args.also)?;
    let state = match args.resume {
        true => State::load(&dir)?,
        false => match what(&args, &mut api, &known, others).await? {
            Some(what) => State::begin(what),
            None => {
                eprintln!("the journal tells of nothing of that time, so nothing can be called missing");
                return conclude(&Counts::default(), args.publish, args.output);
            }
        },
    };
    if state.what.others != others {
        let message = format!("of {} other bridges, as in the interrupted run, but found {others}", state.what.others);
        return Err(Failure::Usage(format!("expected --also with the events {message}")));
    }
    check_application(&config.access.applications, &state.what.application, api.application().as_str())?;
    let upper = state.what.application.to_ascii_uppercase();
    let application = known.spelling(&upper).map_or(upper.clone(), str::to_owned);
    let mut walker = Walker {
        api,
        desk,
        known,
        application,
        settings: config.envelope,
        clock: Clock::system(),
        dir,
        bar: bar(&state.what),
        json: args.output == Output::Json,
        state,
    };
    eprintln!("{}", describe(&walker.state.what));
    let walked = walker.run().await;
    walker.bar.finish_and_clear();
    let Walker { state, dir, .. } = walker;
    if let Err(failure) = walked {
        eprintln!("interrupted; go on with: sendbird-bridge reconcile --resume");
        return Err(failure);
    }
    State::done(&dir);
    conclude(&state.counts, state.what.publish, args.output)
}

/// What is stored and offered here, and stored by other bridges; and how many those are.
fn known(desk: &Desk, also: &[PathBuf]) -> Result<(Known, usize), Failure> {
    let mut known = Known::default();
    known.offered(desk.offered().map_err(Failure::other)?);
    refresh(desk, &mut known)?;
    let mut others = 0;
    for file in also {
        others += others::show(file, &mut known)?;
    }
    Ok((known, others))
}

/// Shows the records that have come since.
fn refresh(desk: &Desk, known: &mut Known) -> Result<(), Failure> {
    let after = known.through();
    let show = |rows: &[Row]| {
        for row in rows {
            match row {
                Row::Intact(record) => known.saw(record.position, record.accepted_ms, &record.payload),
                Row::Damaged { position } => known.damaged(*position),
            }
        }
    };
    desk.select_after(after, &Filter::default(), show).map_err(Failure::other)?;
    Ok(())
}

/// What is to be looked for, once it is sure that it makes sense; `None` if nothing can be, and that is no error.
async fn what(args: &Args, api: &mut Api<Http>, known: &Known, others: usize) -> Result<Option<What>, Failure> {
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
    match known.since_ms() {
        None if args.or_later => return Ok(None),
        Some(first) if args.or_later && first >= until_ms => return Ok(None),
        Some(first) if args.or_later => since_ms = since_ms.max(first),
        None => {
            return Err(Failure::Failed("the journal tells of nothing, so nothing can be called missing".into()));
        }
        Some(first) if first > since_ms => {
            return Err(Failure::Failed(format!(
                "expected --since {} or later, as a journal does not keep what was accepted earlier, but found {}",
                at(first),
                at(since_ms)
            )));
        }
        Some(_) => {}
    }
    let told = if args.category.is_empty() { enabled(api).await? } else { named(&args.category)? };
    Ok(Some(What {
        application: api.application().to_string(),
        since_ms,
        until_ms,
        publish: args.publish,
        told,
        lookback_ms: args.lookback.as_millis(),
        others,
    }))
}

/// What Sendbird delivers, of what can be found. That a participant left is told by one of two categories, and the
/// API does not say by which, so it can be missing only where both are enabled.
async fn enabled(api: &mut Api<Http>) -> Result<BTreeSet<Told>, Failure> {
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
    let told: BTreeSet<Told> = Told::ALL
        .into_iter()
        .filter(|told| Category::ALL.into_iter().filter(|of| Told::by(*of) == Some(*told)).all(is))
        .collect();
    match told.is_empty() {
        true => Err(Failure::Failed("none of the events that are enabled at Sendbird can be found by its API".into())),
        false => Ok(told),
    }
}

fn named(categories: &[Category]) -> Result<BTreeSet<Told>, Failure> {
    let told = |category: &Category| {
        Told::by(*category)
            .ok_or_else(|| Failure::Usage(format!("{category} cannot be found: Sendbird's API does not know of it")))
    };
    categories.iter().map(told).collect()
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

fn category(text: &str) -> Result<Category, String> {
    text.parse()
}

fn bar(what: &What) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {elapsed}  {msg}");
    let span = what.until_ms.saturating_sub(what.begin_ms());
    ProgressBar::with_draw_target(Some(u64::try_from(span).unwrap_or(1)), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn describe(what: &What) -> String {
    let at = |ms| rfc3339(ms).unwrap_or_default();
    let categories: Vec<&str> = what.told.iter().map(|told| told.category().label()).collect();
    let (since, until) = (at(what.since_ms), at(what.until_ms));
    format!("{}: from {since} until {until}, {}", what.application, categories.join(", "))
}

/// The sums, and whether it is well.
fn conclude(counts: &Counts, publish: bool, output: Output) -> Result<(), Failure> {
    print(&match output {
        Output::Json => format!("{}\n", serde_json::json!({ "summary": counts })),
        Output::Table => sums(counts, publish),
    })?;
    if counts.unknown > 0 {
        return Err(Failure::Failed(format!("of {} events it is not known whether they are missing", counts.unknown)));
    }
    let missing: u64 = counts.missing.values().sum();
    if missing > 0 && !publish {
        return Err(Failure::Failed(format!("{missing} events are missing; publish them with --publish")));
    }
    Ok(())
}

fn sums(counts: &Counts, publish: bool) -> String {
    let Counts { calls, rooms, participants, told, offered, missing, queued, unknown, untold } = counts;
    let mut text = format!("{calls} calls, {rooms} rooms, {participants} participants of that time\n");
    text += &format!("{told:>8} events are stored\n");
    for (category, count) in missing {
        text += &format!("{count:>8} are missing: {category}\n");
    }
    for (count, what) in [
        (*offered, "were offered before, and wait for the bridge"),
        (*unknown, "may be stored or missing: the journal does not say"),
        (*untold, "happened at a time that Sendbird does not say, and were not looked for"),
    ] {
        if count > 0 {
            text += &format!("{count:>8} {what}\n");
        }
    }
    if publish {
        text +=
            &format!("{queued:>8} are offered to the bridge: it publishes them within seconds, or when it starts\n");
    }
    text
}

impl Place {
    /// The journal's directory.
    fn dir(&self, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<PathBuf, Failure> {
        match self.given() {
            Some(dir) => Ok(Path::to_owned(dir)),
            None => Ok(load()?.config.journal.dir),
        }
    }
}
