//! The client of the Calls Platform API against the platform that the tests play: lists to their end, filters, pace; and
//! that the platform judges, so that the other tests of it mean something.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sendbird_bridge::domain::secret::Secret;
use sendbird_bridge::sendbird::api::{Answer, Api, Failure, Lost, Pagination, Request, RoomsQuery, Target, Transport};
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::http::{self, Response};
use crate::support::platform::{API_TOKEN, APPLICATION, Platform};

/// HTTP that blocks: nothing here does two things at once.
struct Blocking {
    address: SocketAddr,
    begun: Instant,
}

impl Transport for Blocking {
    async fn exchange(&mut self, request: &Request) -> Result<Answer, Lost> {
        let target = request.url.split_once(&self.address.to_string()).expect("its address").1;
        let mut sent = http::Request::bare(request.method.as_str(), target).header("host", &self.address.to_string());
        for (name, value) in request.headers() {
            sent = sent.header(name, value);
        }
        if let Some(body) = &request.body {
            sent = sent.body(body.expose().as_bytes());
        }
        let response = sent.send(self.address);
        let retry_after = response.header("retry-after").map(str::to_owned);
        Ok(Answer { status: response.status, retry_after, body: response.body })
    }

    async fn sleep(&mut self, pause: Duration) {
        std::thread::sleep(pause);
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn random(&mut self) -> f64 {
        0.5
    }
}

fn client(platform: &Platform) -> Api<Blocking> {
    let target = Target::new(APPLICATION.parse().unwrap(), Secret::new(API_TOKEN), Some(&platform.url())).unwrap();
    Api::new(target, Blocking { address: platform.address(), begun: Instant::now() })
}

fn now<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("it blocks, and does not wait")
}

fn with_calls(count: usize) -> Platform {
    let platform = Platform::start();
    for n in 0..count {
        let result = if n % 2 == 0 { "completed" } else { "declined" };
        platform.add_call(json!({
            "call_id": format!("call-{n}"), "state": "ended", "started_at": 1000 + n, "ended_at": 2000 + n,
            "end_result": result, "duration": n,
            "participants": [{ "user_id": "alice", "role": "dc_caller" }, { "user_id": "bob", "role": "dc_callee" }],
        }));
    }
    platform
}

fn all_calls(api: &mut Api<Blocking>, limit: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut pagination = Pagination::default();
    loop {
        let page = now(api.direct_calls(limit, pagination.cursor())).expect("a page");
        found.extend(page.items.into_iter().map(|call| call.call_id.expect("an id")));
        if !pagination.step(page.next).expect("a new cursor") {
            return found;
        }
    }
}

#[test]
fn a_list_is_read_to_its_end_without_meeting_the_rate_limit() {
    let platform = with_calls(25);
    let mut api = client(&platform);
    let expected: Vec<String> = (0..25).rev().map(|n| format!("call-{n}")).collect();
    assert_eq!(all_calls(&mut api, 2), expected);
    assert_eq!(platform.seen().len(), 13);
    assert!(platform.seen().iter().all(|seen| seen.status == Some(200)), "{:?}", platform.seen());
    platform.newest_first(false);
    let mut turned = all_calls(&mut api, 100);
    turned.reverse();
    assert_eq!(turned, expected);
}

#[test]
fn one_call_is_read_and_what_is_not_there_is_refused() {
    let platform = with_calls(10);
    let mut api = client(&platform);
    let call = now(api.direct_call("call-3")).expect("a call");
    assert_eq!((call.caller_id().as_deref(), call.callee_id().as_deref()), (Some("alice"), Some("bob")));
    assert!(matches!(now(api.direct_call("call-99")), Err(Failure::NotFound(_))));
    assert!(matches!(now(api.direct_calls(10, Some("stale"))), Err(Failure::Refused(_))));
}

#[test]
fn rooms_and_who_was_in_them_are_read() {
    let platform = Platform::start();
    for n in 0..4 {
        let state = if n == 0 { "deleted" } else { "open" };
        let stays = (0..3).map(|k| {
            json!({
                "participant_id": format!("stay-{n}-{k}"), "user": { "user_id": "alice" }, "state": "exited",
                "entered_at": 5000 + k, "exited_at": 6000 + k, "duration": 1,
            })
        });
        platform.add_room(
            json!({
                "room_id": format!("room-{n}"), "room_type": "small_room_for_video", "state": state,
                "created_at": 1000 + n, "created_by": "alice", "current_participants": [],
            }),
            stays.collect(),
        );
    }
    let mut api = client(&platform);
    let mut rooms = |query: RoomsQuery| {
        let page = now(api.rooms(&query, None)).expect("a page");
        page.items.into_iter().map(|room| room.room_id.expect("an id")).collect::<Vec<_>>()
    };
    let query = RoomsQuery::default;
    assert_eq!(rooms(query()), ["room-3", "room-2", "room-1", "room-0"]);
    let between = RoomsQuery { created_at_start_date: Some(1001), created_at_end_date: Some(1002), ..query() };
    assert_eq!(rooms(between), ["room-2", "room-1"]);
    assert_eq!(rooms(RoomsQuery { room_ids: vec!["room-2".into()], ..query() }), ["room-2"]);
    assert_eq!(rooms(RoomsQuery { room_ids: vec!["room-7".into()], ..query() }), [""; 0]);

    assert_eq!(now(api.room("room-0")).expect("a room").state.as_deref(), Some("deleted"));
    assert!(matches!(now(api.room("room-9")), Err(Failure::NotFound(_))));
    assert!(matches!(now(api.participants("room-9", 10, None)), Err(Failure::NotFound(_))));
    let first = now(api.participants("room-1", 2, None)).expect("a page");
    let second = now(api.participants("room-1", 2, first.next.as_deref())).expect("a page");
    let ids: Vec<_> = first.items.iter().chain(&second.items).map(|stay| stay.participant_id.as_deref()).collect();
    assert_eq!(ids, [Some("stay-1-2"), Some("stay-1-1"), Some("stay-1-0")]);
    assert_eq!((second.next, second.items[0].exited_at_ms), (None, Some(6000)));
}

/// A request that is right but for what a test changes.
fn request(platform: &Platform, method: &str, target: &str) -> http::Request {
    let host = platform.address().to_string();
    http::Request::bare(method, &format!("/v1{target}"))
        .header("host", &host)
        .header("api-token", API_TOKEN)
        .header("content-type", "application/json; charset=utf8")
}

fn code(response: &Response) -> (u16, Value) {
    (response.status, response.json()["code"].clone())
}

#[test]
fn the_platform_judges_strictly() {
    let platform = Platform::start();
    platform.limits(1000, 1000);
    let address = platform.address();
    let get = |target: &str| code(&request(&platform, "GET", target).send(address));
    let wrong_value = (400, json!(400_111));
    let wrong_type = (400, json!(400_100));
    for target in [
        "/rooms?limit=0",
        "/rooms?limit=101",
        "/rooms?unknown=1",
        "/rooms?limit=1&limit=2",
        "/rooms?state=nonsense",
        "/rooms?next=made-up",
        "/direct_calls?search_scope_from_call_ts=before",
        "/direct_calls?end_result=nonsense",
    ] {
        assert_eq!(get(target), wrong_value, "{target}");
    }
    for target in ["/rooms?limit=ten", "/rooms?created_at_start_date=today", "/direct_calls?call_ts=now"] {
        assert_eq!(get(target), wrong_type, "{target}");
    }
    assert_eq!(request(&platform, "GET", "/nonsense").send(address).status, 404);
    assert_eq!(request(&platform, "POST", "/rooms").send(address).status, 404);

    let settings = format!("/applications/{APPLICATION}/settings/webhook");
    let put = |body: &str| code(&request(&platform, "PUT", &settings).body(body.as_bytes()).send(address));
    let before = platform.webhook();
    for body in [r#"{"unknown":1}"#, r#"{"url":"nonsense"}"#, r#"{"enabled_events":["*","room:create"]}"#] {
        assert_eq!(put(body), wrong_value, "{body}");
    }
    for body in ["", "[]", r#"{"enabled":"true"}"#, r#"{"enabled_events":"*"}"#, r#"{"url":null}"#] {
        assert_eq!(put(body), wrong_type, "{body}");
    }
    assert_eq!(platform.webhook(), before);

    let host = address.to_string();
    let bare = || http::Request::bare("GET", "/v1/rooms").header("host", &host);
    let kind = "application/json; charset=utf8";
    let answered = |request: http::Request| code(&request.send(address));
    assert_eq!(answered(bare().header("content-type", kind)), (401, json!(401_121)));
    assert_eq!(answered(bare().header("content-type", kind).header("api-token", "x")), (401, json!(401_120)));
    assert_eq!(answered(bare().header("api-token", API_TOKEN)), wrong_value);
    let other = bare().header("api-token", API_TOKEN).header("content-type", "application/json");
    assert_eq!(answered(other), wrong_value);
}

#[test]
fn the_platform_keeps_its_rate_limits() {
    let settings = format!("/applications/{APPLICATION}/settings/webhook");
    for (method, target, most) in [("GET", "/rooms", 10), ("GET", "/direct_calls", 10), ("PUT", settings.as_str(), 5)] {
        let platform = Platform::start();
        let ask = || {
            let request = request(&platform, method, target);
            let request = if method == "PUT" { request.body(b"{}") } else { request };
            request.send(platform.address())
        };
        let mut limited = None;
        // Enough at once for a second of any machine; if one is too slow, again.
        eventually("more is asked than is allowed", || {
            let answers: Vec<Response> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..most + 3).map(|_| scope.spawn(ask)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            limited = answers.into_iter().find(|answer| answer.status == 429);
            limited.is_some()
        });
        let body = limited.unwrap().json();
        assert_eq!((&body["code"], body.get("error")), (&json!(429_100), None));
        let taken: Vec<Instant> =
            platform.seen().iter().filter(|seen| seen.status == Some(200)).map(|seen| seen.at).collect();
        assert!(taken.len() >= most, "{method} {target}: {}", taken.len());
        for window in taken.windows(most + 1) {
            assert!(window[most] - window[0] >= Duration::from_secs(1), "{method} {target}");
        }
    }
}
