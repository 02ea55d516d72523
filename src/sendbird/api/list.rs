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

/// Which direct calls. All of it is likely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallsQuery {
    /// Entries on a page, 1 to 100.
    pub limit: Option<u32>,
    /// A point in time, Unix milliseconds, that [`Self::search_scope_from_call_ts`] starts from.
    pub call_ts: Option<i64>,
    /// Which side of [`Self::call_ts`] is searched. Its values are not known for certain: do not depend on it, but look
    /// at `started_at` and `ended_at` of what comes.
    pub search_scope_from_call_ts: Option<String>,
    /// Only calls that ended so; empty means all.
    pub end_result: Vec<String>,
    /// Only calls at least so long, milliseconds.
    pub duration_range_min: Option<i64>,
    /// Only calls at most so long, milliseconds.
    pub duration_range_max: Option<i64>,
}

impl CallsQuery {
    pub(super) fn write(&self, cursor: Option<&str>) -> String {
        let mut query = Query::new(self.limit, cursor);
        query.add("call_ts", self.call_ts);
        query.add("search_scope_from_call_ts", self.search_scope_from_call_ts.as_ref());
        query.add("end_result", (!self.end_result.is_empty()).then(|| self.end_result.join(",")));
        query.add("duration_range_min", self.duration_range_min);
        query.add("duration_range_max", self.duration_range_max);
        query.0
    }
}

/// Which rooms. Documented.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomsQuery {
    /// Entries on a page, 1 to 100.
    pub limit: Option<u32>,
    /// Only rooms of this type, such as `small_room_for_video`.
    pub room_type: Option<String>,
    /// Only rooms in this state: `open` or `deleted`.
    pub state: Option<String>,
    /// Only these rooms; empty means all.
    pub room_ids: Vec<String>,
    /// Only rooms made by these users; empty means all.
    pub created_by_user_ids: Vec<String>,
    /// Only rooms made then or later, Unix milliseconds.
    pub created_at_start_date: Option<i64>,
    /// Only rooms made then or earlier, Unix milliseconds. Whether that very millisecond counts is not documented.
    pub created_at_end_date: Option<i64>,
}

impl RoomsQuery {
    pub(super) fn write(&self, cursor: Option<&str>) -> String {
        let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(","));
        let mut query = Query::new(self.limit, cursor);
        query.add("type", self.room_type.as_ref());
        query.add("state", self.state.as_ref());
        query.add("room_ids", joined(&self.room_ids));
        query.add("created_by_user_ids", joined(&self.created_by_user_ids));
        query.add("created_at_start_date", self.created_at_start_date);
        query.add("created_at_end_date", self.created_at_end_date);
        query.0
    }
}

/// The query of a list of participants.
pub(super) fn participants(limit: u32, cursor: Option<&str>) -> String {
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
        assert_eq!(CallsQuery::default().write(None), "");
        let query = CallsQuery {
            limit: Some(1000),
            call_ts: Some(5),
            search_scope_from_call_ts: Some("x".into()),
            end_result: vec!["completed".into(), "declined".into()],
            duration_range_min: Some(1),
            duration_range_max: Some(2),
        };
        let expected = "?limit=100&next=a%2Fb&call_ts=5&search_scope_from_call_ts=x&end_result=completed%2Cdeclined\
                        &duration_range_min=1&duration_range_max=2";
        assert_eq!(query.write(Some("a/b")), expected);
        let query = RoomsQuery {
            limit: Some(0),
            room_type: Some("small_room_for_video".into()),
            state: Some("open".into()),
            room_ids: vec!["r".into()],
            created_by_user_ids: vec!["alice".into(), "bob".into()],
            created_at_start_date: Some(1),
            created_at_end_date: Some(2),
        };
        let expected = "?limit=1&type=small_room_for_video&state=open&room_ids=r&created_by_user_ids=alice%2Cbob\
                        &created_at_start_date=1&created_at_end_date=2";
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
