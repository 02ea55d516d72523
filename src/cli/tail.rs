//! `tail`: follows the feed of a running bridge.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::Uri;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::sleep;

use super::client::{self, TlsArgs};
use super::{Failure, print, reach};
use crate::config::Loaded;
use crate::domain::secret::Secret;
use crate::outbound::HttpClient;

/// Pause before the feed is asked again after it ended.
const BEFORE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bridge's admin address; by default admin.listen of the configuration, or http://127.0.0.1:9090
    #[arg(long, value_parser = client::url)]
    url: Option<Uri>,

    /// The admin token, where one is asked for; by default admin.token of the configuration
    #[arg(long, value_parser = client::secret)]
    token: Option<Secret>,

    /// A file that holds the admin token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,

    #[command(flatten)]
    tls: TlsArgs,

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
    let client = client::new(&args.tls)?;
    let admin = loaded.config.admin;
    let url = args.url.clone().map_or_else(|| reach::url("admin.listen", admin.listen, admin.tls.is_some()), Ok)?;
    let token = client::token(args.token.clone(), args.token_file.as_ref())?.or(admin.token);
    let mut last_id = None;
    let mut connected = false;
    loop {
        match open(&client, &args, &url, token.as_ref(), last_id.as_deref()).await {
            Ok(body) => {
                connected = true;
                if let Ended::Unread = copy(body, &mut last_id).await? {
                    return Ok(());
                }
                if args.no_follow {
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

async fn open(
    client: &HttpClient,
    args: &Args,
    url: &Uri,
    token: Option<&Secret>,
    last_id: Option<&str>,
) -> Result<Incoming, Failure> {
    let follow = if args.no_follow { "false" } else { "true" };
    let mut query = format!("follow={follow}");
    for (name, value) in [("after", &args.after), ("key", &args.key), ("type", &args.kind)] {
        if let Some(value) = value {
            query += &format!("&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
    }
    let base = url.to_string();
    let mut request = hyper::Request::get(format!("{}/events?{query}", base.trim_end_matches('/')));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
    }
    if let Some(id) = last_id {
        request = request.header("last-event-id", id);
    }
    let request = request.body(Full::<Bytes>::default()).map_err(Failure::other)?;
    let response = client.request(request).await.map_err(|error| Failure::other(reach::unreached(url, &error)))?;
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let status = response.status();
    let body = response.into_body().collect().await.map_err(Failure::other)?.to_bytes();
    let detail = serde_json::from_slice::<serde_json::Value>(&body).ok();
    let detail = detail.as_ref().and_then(|problem| problem["detail"].as_str()).unwrap_or("no reason given");
    let failure = format!("the bridge answered {status}: {detail}");
    Err(if status.is_server_error() { Failure::other(failure) } else { Failure::Failed(failure) })
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
