//! `tail`: follows the feed of a running bridge.

use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::sleep;

use super::admin::{Admin, AdminArgs};
use super::{Failure, print};
use crate::config::Loaded;

/// Pause before the feed is asked again after it ended.
const BEFORE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: AdminArgs,

    #[command(flatten)]
    query: Query,
}

/// What of the feed.
#[derive(Debug, clap::Args)]
struct Query {
    /// Start after this position, or at "end"; by default with the oldest event kept
    #[arg(long, value_name = "POSITION")]
    after: Option<String>,

    /// Only events of this call_id or room_id
    #[arg(long)]
    key: Option<String>,

    /// Only events of this type or category
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// Exit at the end of the feed instead of waiting for more events
    #[arg(long)]
    no_follow: bool,
}

/// Why reading the feed ended.
enum Ended {
    /// The bridge closed it.
    Closed,
    /// Standard output was closed: nobody reads on.
    Unread,
}

pub(super) async fn run(args: Args, loaded: Loaded) -> Result<(), Failure> {
    let Args { admin, query } = args;
    let admin = admin.resolve(loaded)?;
    let mut last_id = None;
    let mut connected = false;
    loop {
        match open(&admin, &query, last_id.as_deref()).await {
            Ok(body) => {
                connected = true;
                if let Ended::Unread = copy(body, &mut last_id).await? {
                    return Ok(());
                }
                if query.no_follow {
                    return Ok(());
                }
                eprintln!("the bridge closed the feed; reconnecting");
            }
            // A bridge that restarts, or has no feed free, is waited for; one that never was there is not.
            Err(Failure::Other(error)) if connected => eprintln!("still {error}"),
            Err(failure) => return Err(failure),
        }
        sleep(BEFORE_AGAIN).await;
    }
}

async fn open(admin: &Admin, args: &Query, last_id: Option<&str>) -> Result<Incoming, Failure> {
    let follow = if args.no_follow { "false" } else { "true" };
    let mut query = format!("follow={follow}");
    for (name, value) in [("after", &args.after), ("key", &args.key), ("type", &args.kind)] {
        if let Some(value) = value {
            query += &format!("&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
    }
    let header = last_id.map(|id| ("last-event-id", id));
    Ok(admin.get(&format!("/events?{query}"), header).await?.into_body())
}

/// Prints what the feed brings and remembers where it got to.
async fn copy(mut body: Incoming, last_id: &mut Option<String>) -> Result<Ended, Failure> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // A feed that breaks off is taken up again where it was.
        let Ok(frame) = frame else { return Ok(Ended::Closed) };
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let line = String::from_utf8_lossy(&line[..end]);
            if let Some(id) = line.strip_prefix("id:") {
                *last_id = Some(id.trim().to_owned());
            } else if let Some(envelope) = line.strip_prefix("data:") {
                if !print(&format!("{}\n", envelope.trim_start()))? {
                    return Ok(Ended::Unread);
                }
            } else if let Some(comment) = line.strip_prefix(": ").filter(|comment| *comment != "alive") {
                eprintln!("{comment}");
            }
        }
    }
    Ok(Ended::Closed)
}
