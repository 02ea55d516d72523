//! File descriptors: how many there are, and how many of them connections may have.
//!
//! A bridge that has none left can neither accept nor refuse, and its sinks and its journal cannot open what they need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What connections to the webhook leave to the rest: to sinks, the journal, and readers of the feed, which take three
/// each. Where there are few altogether, that is half of them.
const RESERVE: u64 = 1024;

/// Raises the limit of the process as far as it may, and says how many of the connections that are wanted there is
/// room for.
pub fn room_for(wanted: usize) -> usize {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: found.maximum, ..found };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::debug!(%error, "cannot raise the limit of file descriptors");
            found.current
        }
    };
    let room = room_within(limit);
    if room < wanted {
        tracing::warn!(
            file_descriptors = limit,
            max_connections = room,
            "connection limit is below server.max_connections: too few file descriptors"
        );
    }
    wanted.min(room)
}

/// `None` is no limit.
fn room_within(limit: Option<u64>) -> usize {
    let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(RESERVE).max(limit / 2));
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_left_to_the_rest() {
        assert_eq!(room_within(Some(64)), 32);
        assert_eq!(room_within(Some(1024)), 512);
        assert_eq!(room_within(Some(20_000)), 18_976);
        assert_eq!(room_within(None), usize::MAX);
    }
}
