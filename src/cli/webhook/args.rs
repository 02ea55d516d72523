//! What is to be set, checked before anything is sent. No message shows a URL: it may hold the path secret.

use hyper::Uri;

use super::Set;
use crate::cli::{Failure, client};
use crate::config::nearest;
use crate::domain::secret::Secret;
use crate::sendbird::api::Change;
use crate::sendbird::api::webhook::ALL;
use crate::sendbird::category::Category;

/// What stands for no event at all.
const NONE: &str = "none";

/// A change whose events may not all be known.
pub(super) struct Wanted {
    change: Change,
    /// The names that are not among the 13, as they were given.
    unknown: Vec<String>,
}

/// Reads the arguments.
pub(super) fn change(args: &Set) -> Result<Wanted, Failure> {
    let from_file = || args.url_file.as_ref().map(|file| client::first_line("URL", file)).transpose();
    let given = args.url.clone().map_or_else(from_file, |url| Ok(Some(url)))?;
    if let Some(given) = &given {
        check_url(given, args.force).map_err(Failure::Usage)?;
    }
    let (events, unknown) = if args.events.is_empty() { (None, Vec::new()) } else { events(&args.events)? };
    let enabled = (args.enable || args.disable).then_some(args.enable);
    let change = Change { enabled, url: given, enabled_events: events, include_members: args.include_members };
    if change.is_empty() {
        let needed = "expected --url, --url-file, --enable, --disable, --events or --include-members";
        return Err(Failure::Usage(needed.into()));
    }
    Ok(Wanted { change, unknown })
}

impl Wanted {
    /// The URL, if one is to be set.
    pub(super) fn url(&self) -> Option<Uri> {
        self.change.url.as_ref().and_then(|url| url.expose().parse().ok())
    }

    /// Whether Sendbird has to be asked which events there are.
    pub(super) fn has_unknown_events(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// The change, if Sendbird lists every event of it, or if that does not matter.
    pub(super) fn resolve(self, listed: Option<&[String]>, force: bool) -> Result<Change, Failure> {
        let mut change = self.change;
        let listed = listed.unwrap_or_default();
        for unknown in &self.unknown {
            let spelled = listed.iter().find(|listed| listed.eq_ignore_ascii_case(unknown));
            let Some(name) = spelled.or(force.then_some(unknown)) else {
                return Err(Failure::Usage(no_category(unknown, listed)));
            };
            change.enabled_events.get_or_insert_default().push(name.clone());
        }
        Ok(change)
    }
}

fn no_category(unknown: &str, listed: &[String]) -> String {
    let mut known: Vec<&str> = Category::ALL.iter().map(|category| category.label()).collect();
    known.extend(listed.iter().map(String::as_str).filter(|name| Category::of(name) == Category::Other));
    let hint = match nearest(unknown, &known) {
        Some(name) => format!("; did you mean {name}?"),
        None if unknown.contains('*') => "; a * stands alone, for all events".into(),
        None => String::new(),
    };
    format!("expected events among {}, but found \"{unknown}\"{hint} (--force sends it as it is)", known.join(", "))
}

/// The known ones as Sendbird spells them, each once, and the others.
fn events(given: &[String]) -> Result<(Option<Vec<String>>, Vec<String>), Failure> {
    let given: Vec<&str> = given.iter().map(|name| name.trim()).collect();
    match given[..] {
        [ALL] => return Ok((Some(vec![ALL.to_owned()]), Vec::new())),
        [none] if none.eq_ignore_ascii_case(NONE) => return Ok((Some(Vec::new()), Vec::new())),
        _ => {}
    }
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for name in given {
        match Category::of(name) {
            _ if name.is_empty() => {
                return Err(Failure::Usage("expected a category between commas, but found none".into()));
            }
            _ if name == ALL || name.eq_ignore_ascii_case(NONE) => {
                return Err(Failure::Usage(format!("expected \"{name}\" alone, but found other events beside it")));
            }
            Category::Other => unknown.push(name.to_owned()),
            category => known.push(category.label().to_owned()),
        }
    }
    known.sort();
    known.dedup();
    Ok((Some(known), unknown))
}

/// Sendbird delivers over the internet, to whatever answers there.
fn check_url(given: &Secret, force: bool) -> Result<(), String> {
    let text = given.expose();
    let uri: Uri = text.parse().map_err(|_no_url| "expected a URL, but found something else")?;
    let host = uri.host().unwrap_or_default();
    if host.is_empty() || !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("expected a URL that begins with https://, but found another".into());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || text.contains('#') {
        return Err("expected a URL without user and fragment, but found one".into());
    }
    if force {
        return Ok(());
    }
    if uri.scheme_str() == Some("http") {
        return Err(
            "expected a URL that begins with https://, as deliveries name users and the path may be secret, but \
                    found http:// (--force sends it as it is)"
                .into(),
        );
    }
    if crate::cli::platform::is_loopback(&uri) {
        return Err("expected a URL that Sendbird can reach, but found one of this machine (--force sends it)".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(given: &[&str]) -> Result<Wanted, Failure> {
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        let (enabled_events, unknown) = events(&given)?;
        Ok(Wanted { change: Change { enabled_events, ..Change::default() }, unknown })
    }

    fn resolved(given: &[&str], listed: &[&str], force: bool) -> Result<Vec<String>, String> {
        let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
        let change = wanted(given).and_then(|wanted| wanted.resolve(Some(&listed), force));
        change.map(|change| change.enabled_events.unwrap_or_default()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn events_are_all_none_or_known() {
        assert_eq!(resolved(&["*"], &[], false), Ok(vec!["*".into()]));
        assert_eq!(resolved(&["None"], &[], false), Ok(Vec::new()));
        let known = resolved(&["ROOM:create", " direct_call:dial", "room:create"], &[], false);
        assert_eq!(known, Ok(vec!["direct_call:dial".into(), "room:create".into()]));
        for wrong in [&["*", "room:create"][..], &["none", "room:create"], &["room:create", ""], &[""]] {
            assert!(resolved(wrong, &[], true).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_unknown_event_is_sent_only_if_sendbird_lists_it_or_by_force() {
        assert_eq!(resolved(&["room:New"], &["room:new"], false), Ok(vec!["room:new".into()]));
        assert_eq!(resolved(&["room:New"], &[], true), Ok(vec!["room:New".into()]));
        let hint = |given: &str| resolved(&[given], &["room:brand_new"], false).expect_err("refused");
        assert!(hint("room:creat").contains("did you mean room:create?"));
        assert!(hint("room:brand_now").contains("did you mean room:brand_new?"));
        assert!(hint("zzz:*").contains("stands alone"), "{}", hint("zzz:*"));
        assert!(!hint("nonsense").contains("did you mean"));
    }

    #[test]
    fn a_url_is_checked_and_never_shown() {
        let check = |url: &str, force| check_url(&Secret::new(url), force);
        assert_eq!(check("https://calls.example.com/webhooks/sendbird/canary", false), Ok(()));
        for wrong in
            ["canary", "/canary", "ftp://h/canary", "https://", "https://u:canary@h/", "https://h/#canary", "h:1"]
        {
            for force in [false, true] {
                assert!(check(wrong, force).is_err_and(|error| !error.contains("canary")), "{wrong}");
            }
        }
        for doubtful in
            ["http://h/canary", "https://localhost/canary", "https://127.0.0.1/canary", "https://[::1]:1/canary"]
        {
            assert!(check(doubtful, false).is_err_and(|error| !error.contains("canary")), "{doubtful}");
            assert_eq!(check(doubtful, true), Ok(()));
        }
    }
}
