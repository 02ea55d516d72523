//! What other bridges have stored, from their feeds.
//!
//! Several bridges share the deliveries of one application, each with a journal of its own; what one of them has
//! stored is not missing. `tail --no-follow` prints a feed whole, one envelope a line; a blank line stands between
//! two bridges.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::cli::Failure;
use crate::sendbird::reconcile::seen_facts::SeenFacts;

#[derive(Deserialize)]
struct Received {
    receivedtime: String,
}

/// Reads the events in `path`, or on standard input if that is `-`; returns of how many bridges they are.
pub(super) fn read(path: &Path, seen: &mut SeenFacts) -> Result<usize, Failure> {
    let name = path.display();
    let unreadable = |error: io::Error| Failure::Usage(format!("cannot read {name}: {error}"));
    let lines: Box<dyn BufRead> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(File::open(path).map_err(unreadable)?)),
    };
    let mut bridges = 0;
    let mut inside = false;
    for (index, line) in lines.lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.is_empty() {
            if !inside {
                return Err(no_events(&format!("before line {} of {name}", index + 1)));
            }
            inside = false;
            continue;
        }
        let received = serde_json::from_str::<Received>(&line).ok();
        let received = received.and_then(|received| received.receivedtime.parse::<jiff::Timestamp>().ok());
        let received = received.ok_or_else(|| {
            Failure::Usage(format!("expected an envelope in line {} of {name}, but found something else", index + 1))
        })?;
        if !inside {
            bridges += 1;
            seen.others_since(received.as_millisecond());
        }
        inside = true;
        seen.add_event(line.as_bytes());
    }
    if !inside {
        return Err(no_events(&format!("at the end of {name}")));
    }
    Ok(bridges)
}

/// Of a bridge that has stored nothing, nobody knows from when on it keeps everything.
fn no_events(at: &str) -> Failure {
    Failure::Usage(format!("expected the events of a bridge, but found none {at}"))
}
