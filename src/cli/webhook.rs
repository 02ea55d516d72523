//! `webhook`: Sendbird's own webhook settings of an application, shown and changed.
//!
//! `set` reads the settings, sends what differs, and reads them back: what it says is what Sendbird has, whatever the
//! answer to the change was. A change in doubt is never sent a second time; the next run sees what is left to do.

mod args;
mod own;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use serde_json::json;
use tokio::time::sleep;

use self::show::Shown;
use super::output::{Output, OutputArgs};
use super::platform::{Platform, PlatformArgs, explain};
use super::{Failure, client, print};
use crate::config::{Faults, Loaded};
use crate::domain::secret::Secret;
use crate::sendbird::api::webhook::Found;
use crate::sendbird::api::{Change, Setting, Webhook};

/// How often the settings are read back before what differs counts as not set.
const READS: u32 = 3;

/// Between two of these reads.
const BETWEEN_READS: Duration = Duration::from_secs(1);

const GET_EXAMPLES: &str = "\
Examples:
  sendbird-bridge webhook get --config bridge.toml
  sendbird-bridge webhook get --application 0A1B2C3D-1111-4222-8333-444455556666 --token-file token --all-categories

The URL is shown up to the path of the bridge (server.path), as what follows may be its path secret.";

const SET_EXAMPLES: &str = "\
Examples:
  sendbird-bridge webhook set --config bridge.toml --url https://example.com/webhooks/sendbird
  sendbird-bridge webhook set --config bridge.toml --enable --events '*'
  sendbird-bridge webhook set --config bridge.toml --url-file webhook-url --dry-run
  sendbird-bridge webhook set --config bridge.toml --events direct_call:dial,direct_call:end
  sendbird-bridge webhook set --config bridge.toml --disable

What is not named stays as it is. Exit code 1 if it is not so when the settings are read back.
The URL is shown up to the path of the bridge (server.path), as what follows may be its path secret.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the settings
    #[command(after_help = GET_EXAMPLES)]
    Get(Get),
    /// Change settings, and read them back
    #[command(after_help = SET_EXAMPLES)]
    Set(Set),
}

#[derive(Debug, Args)]
pub(super) struct Get {
    #[command(flatten)]
    platform: PlatformArgs,

    /// Also list every event that Sendbird can send
    #[arg(long)]
    all_categories: bool,

    #[command(flatten)]
    shown: ShownArgs,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    #[command(flatten)]
    platform: PlatformArgs,

    /// The https URL that Sendbird delivers to. If it contains the path secret, prefer --url-file
    #[arg(long, value_parser = client::secret)]
    url: Option<Secret>,

    /// A file whose first line is the URL
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    url_file: Option<PathBuf>,

    /// Turn deliveries on
    #[arg(long, conflicts_with = "disable")]
    enable: bool,

    /// Turn deliveries off: what happens meanwhile is lost
    #[arg(long)]
    disable: bool,

    /// The events to deliver: '*' for all, none, or categories with commas between
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    events: Vec<String>,

    /// Whether deliveries are to name all members
    #[arg(long, value_name = "true|false")]
    include_members: Option<bool>,

    /// Whether to ask the URL first, by a GET, if a bridge answers there; what is wrong is only warned of
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = ArgAction::Set)]
    probe: bool,

    /// Print what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Send the change even if it looks wrong: events that are not known, a URL without TLS or of this machine
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    shown: ShownArgs,
}

#[derive(Debug, Args)]
struct ShownArgs {
    #[command(flatten)]
    output: OutputArgs,

    /// Print URLs whole, the path secret included
    #[arg(long)]
    show_url: bool,
}

pub(super) async fn run(
    command: Command,
    load: impl FnOnce() -> Result<Loaded, Faults>,
    describe: impl FnOnce() -> Result<Loaded, Faults>,
) -> Result<(), Failure> {
    match command {
        Command::Get(args) => get(&args, args.platform.open(load)?).await,
        Command::Set(args) => {
            let wanted = args::change(&args)?;
            if let Some(url) = wanted.url() {
                own::warn(&url, &describe()?, args.probe, args.platform.tls()).await?;
            }
            set(&args, wanted, args.platform.open(load)?).await
        }
    }
}

async fn get(args: &Get, mut platform: Platform) -> Result<(), Failure> {
    let webhook = read(&mut platform, args.all_categories).await?;
    let shown = Shown { path: &platform.path, whole_urls: args.shown.show_url };
    let application = platform.api.application();
    let text = match args.shown.output.output {
        Output::Json => {
            format!("{}\n", json!({ "application_id": application.as_str(), "webhook": shown.json(&webhook) }))
        }
        Output::Table => format!("{:<18}{application}\n{}", "application", shown.table(&webhook)),
    };
    print(&text).map(drop)
}

async fn read(platform: &mut Platform, all_categories: bool) -> Result<Webhook, Failure> {
    let known = platform.api.settings_are_of_the_token();
    let read = platform.api.webhook(all_categories).await;
    let webhook = read.map_err(|failure| explain(&failure, &platform.api))?;
    if !known && platform.api.settings_are_of_the_token() {
        eprintln!("the address of these settings does not name the application: they are those of the token");
    }
    Ok(webhook)
}

async fn set(args: &Set, wanted: args::Wanted, mut platform: Platform) -> Result<(), Failure> {
    let before = read(&mut platform, wanted.has_unknown_events()).await?;
    let change = wanted.resolve(before.all_webhook_categories.as_deref(), args.force)?;
    let missing = change.without(&before);
    let mut after = None;
    let mut doubt = None;
    if !missing.is_empty() && !args.dry_run {
        if let Err(failure) = platform.api.set_webhook(&missing).await {
            if !failure.is_ambiguous() {
                return Err(explain(&failure, &platform.api));
            }
            eprintln!("it is not certain that the settings were changed: {failure}; reading them back");
            doubt = Some(failure);
        }
        let read = read_back(&change, &mut platform).await;
        after =
            Some(read.map_err(|failure| {
                Failure::Failed(format!("the change was sent, but cannot be verified: {failure}"))
            })?);
    }
    let result =
        SetResult { application: platform.api.application().as_str(), args, change: &change, before, missing, after };
    print(&result.text(&Shown { path: &platform.path, whole_urls: args.shown.show_url }))?;
    result.judge(doubt.is_some())
}

/// Reads until all is as it was to be, a few times at most: nothing says that Sendbird shows a change at once.
async fn read_back(change: &Change, platform: &mut Platform) -> Result<Webhook, Failure> {
    let mut reads = 1;
    loop {
        let webhook = read(platform, false).await?;
        let differs = change.compare(&webhook).iter().any(|(_, found)| *found == Found::Different);
        if !differs || reads >= READS {
            return Ok(webhook);
        }
        reads += 1;
        sleep(BETWEEN_READS).await;
    }
}

/// What `set` has to tell.
struct SetResult<'a> {
    application: &'a str,
    args: &'a Set,
    change: &'a Change,
    before: Webhook,
    /// What of the change was not so before.
    missing: Change,
    /// What was read back, if anything was sent.
    after: Option<Webhook>,
}

impl SetResult<'_> {
    fn found(&self, what: Found) -> Vec<&'static str> {
        let compared = self.after.as_ref().map(|after| self.change.compare(after)).unwrap_or_default();
        compared.into_iter().filter(|(_, found)| *found == what).map(|(setting, _)| setting.name()).collect()
    }

    fn text(&self, shown: &Shown<'_>) -> String {
        let settings = self.missing.settings();
        let now = self.after.as_ref().unwrap_or(&self.before);
        match self.args.shown.output.output {
            Output::Json => {
                let change = |setting: &Setting| {
                    let (from, to) = (shown.value(*setting, &self.before), shown.wanted(*setting, &self.missing));
                    json!({ "setting": setting.name(), "from": from, "to": to })
                };
                let text = json!({
                    "application_id": self.application,
                    "dry_run": self.args.dry_run,
                    "changes": settings.iter().map(change).collect::<Vec<_>>(),
                    "differs": self.found(Found::Different),
                    "not_told": self.found(Found::NotReturned),
                    "webhook": shown.json(now),
                });
                format!("{text}\n")
            }
            Output::Table => {
                let mut text = format!("{:<18}{}\n", "application", self.application);
                for setting in &settings {
                    text += &shown.change(*setting, &self.before, &self.missing);
                }
                match (settings.is_empty(), self.args.dry_run) {
                    (true, _) => text + "nothing to change\n" + &shown.table(now),
                    (false, true) => text + "nothing was changed, because of --dry-run\n",
                    (false, false) => text + "read back:\n" + &shown.table(now),
                }
            }
        }
    }

    /// Whether it came to what was wanted.
    fn judge(&self, doubtful: bool) -> Result<(), Failure> {
        let (differs, not_returned) = (self.found(Found::Different), self.found(Found::NotReturned));
        if !not_returned.is_empty() {
            eprintln!("Sendbird does not return {}, so the change cannot be verified", not_returned.join(", "));
        }
        match (differs.is_empty(), doubtful) {
            (true, _) => Ok(()),
            (false, true) => Err(Failure::Failed(format!(
                "the change is not visible yet: {} differs from what was requested; run the command again",
                differs.join(", ")
            ))),
            (false, false) => Err(Failure::Failed(format!(
                "Sendbird took the change, but returns other values than requested for {}",
                differs.join(", ")
            ))),
        }
    }
}
