//! Lists: what is asked for, one page of an answer, and the pagination from page to page.
//!
//! Documented: a list has at most 100 entries on a page (10 if nothing is said), and `next` is an opaque cursor, `null`
//! or empty at the end. Nothing is documented of the order; do not depend on one.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::Value;

use super::failure::Failure;
use super::fields::Fields;
use super::request::segment;

/// The most entries on one page.
pub const LARGEST_PAGE: u32 = 100;

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// Its entries, in Sendbird's order.
    pub items: Vec<T>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The list stands under the first of these names that is there. An entry that is no object is left out.
    pub(super) fn parse(answer: &Value, names: &[&str], parse: fn(&Value) -> Option<T>) -> Result<Self, Failure> {
        let list = names.iter().find(|name| answer.get(**name).is_some_and(Value::is_array));
        let Some(list) = list else {
            return Err(Failure::Unreadable(format!("expected a list named {}, but found none", names.join(" or "))));
        };
        let fields = Fields(answer);
        Ok(Self { items: fields.objects(list).filter_map(parse).collect(), next: fields.text("next") })
    }
}

/// From page to page of one list. It ends: a cursor that comes a second time is a failure and not a circle.
///
/// ```
/// use sendbird_bridge::sendbird::api::Pagination;
///
/// let mut pagination = Pagination::default();
/// assert_eq!(pagination.cursor(), None);
/// assert!(pagination.step(Some("a".into())).expect("a new cursor"));
/// assert_eq!(pagination.cursor(), Some("a"));
/// assert!(pagination.step(Some("a".into())).is_err());
/// assert!(!pagination.step(None).expect("the end"));
/// ```
#[derive(Debug, Default)]
pub struct Pagination {
    cursor: Option<String>,
    seen: HashSet<String>,
}

impl Pagination {
    /// Of the page to ask for now.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Goes on to the page with the cursor `next`; `false` says that there is none.
    ///
    /// # Errors
    /// The cursor was there before.
    pub fn step(&mut self, next: Option<String>) -> Result<bool, Failure> {
        if let Some(next) = &next
            && !self.seen.insert(next.clone())
        {
            return Err(Failure::Unreadable("expected a new cursor, but found one that was on a page before".into()));
        }
        self.cursor = next;
        Ok(self.cursor.is_some())
    }
}

/// Which rooms. Documented.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomsQuery {
    /// Entries on a page, 1 to 100.
    pub limit: Option<u32>,
    /// Only these rooms; empty means all.
    pub room_ids: Vec<String>,
    /// Only rooms made then or later, Unix milliseconds.
    pub created_at_start_date: Option<i64>,
    /// Only rooms made then or earlier, Unix milliseconds. Whether that very millisecond counts is not documented.
    pub created_at_end_date: Option<i64>,
}

impl RoomsQuery {
    pub(super) fn write(&self, cursor: Option<&str>) -> String {
        let mut query = Query::new(self.limit, cursor);
        query.add("room_ids", (!self.room_ids.is_empty()).then(|| self.room_ids.join(",")));
        query.add("created_at_start_date", self.created_at_start_date);
        query.add("created_at_end_date", self.created_at_end_date);
        query.0
    }
}

/// The query of a list of which all entries are wanted.
pub(super) fn page(limit: u32, cursor: Option<&str>) -> String {
    Query::new(Some(limit), cursor).0
}

/// The text from the `?` on.
struct Query(String);

impl Query {
    fn new(limit: Option<u32>, cursor: Option<&str>) -> Self {
        let mut query = Self(String::new());
        query.add("limit", limit.map(|limit| limit.clamp(1, LARGEST_PAGE)));
        query.add("next", cursor);
        query
    }

    fn add(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            let sign = if self.0.is_empty() { '?' } else { '&' };
            let value = segment(&value.to_string());
            // Writing to a text cannot fail.
            write!(self.0, "{sign}{name}={value}").ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::objects::DirectCall;
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_in_the_query() {
        assert_eq!(page(1000, Some("a/b")), "?limit=100&next=a%2Fb");
        assert_eq!(RoomsQuery::default().write(None), "");
        let query = RoomsQuery {
            limit: Some(0),
            room_ids: vec!["r".into(), "s".into()],
            created_at_start_date: Some(1),
            created_at_end_date: Some(2),
        };
        let expected = "?limit=1&room_ids=r%2Cs&created_at_start_date=1&created_at_end_date=2";
        assert_eq!(query.write(None), expected);
    }

    #[test]
    fn a_page_is_found_under_its_names() {
        let page = |answer: Value| Page::parse(&answer, &["calls", "direct_calls"], DirectCall::parse);
        for answer in [
            json!({ "calls": [{ "call_id": "a" }, 1, null], "next": "c", "prev": null }),
            json!({ "direct_calls": [{ "call_id": "a" }], "calls": null, "next": "c" }),
        ] {
            let page = page(answer).expect("a page");
            assert_eq!((page.items.len(), page.next.as_deref()), (1, Some("c")));
        }
        for end in [json!(null), json!(""), json!(7)] {
            assert_eq!(page(json!({ "calls": [], "next": end })).expect("a page").next, None);
        }
        assert!(matches!(page(json!({ "next": "c" })), Err(Failure::Unreadable(_))));
        assert!(matches!(page(json!([])), Err(Failure::Unreadable(_))));
    }
}
