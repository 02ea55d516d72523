//! The client over a transport that plays a script, in a time that only moves when somebody waits.

use std::collections::VecDeque;

use futures_util::FutureExt;
use serde_json::json;

use super::*;
use crate::domain::secret::Secret;

/// Answers in the order of the script, and remembers what it was asked, and when.
#[derive(Default)]
struct Script {
    answers: VecDeque<Result<Answer, Lost>>,
    asked: Vec<(Duration, &'static str, String)>,
    now: Duration,
}

impl Transport for &mut Script {
    async fn exchange(&mut self, request: &Request) -> Result<Answer, Lost> {
        let path = request.url.split("/v1").nth(1).unwrap_or_default();
        self.asked.push((self.now, request.method.as_str(), path.to_owned()));
        self.answers.pop_front().expect("another answer in the script")
    }

    async fn sleep(&mut self, pause: Duration) {
        self.now += pause;
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn random(&mut self) -> f64 {
        1.0
    }
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Result<Answer, Lost>>) -> Self {
        Self { answers: answers.into_iter().collect(), ..Self::default() }
    }

    /// Runs with a client until it has its result, which never takes time.
    fn run<R>(&mut self, work: impl AsyncFnOnce(&mut Api<&mut Self>) -> R) -> R {
        let id: ApplicationId = "APP".parse().expect("an id");
        let target = Target::new(id, Secret::new("token"), None).expect("a target");
        let mut api = Api::new(target, self);
        work(&mut api).now_or_never().expect("nothing to wait for")
    }

    fn paths(&self) -> Vec<String> {
        self.asked.iter().map(|(_, method, path)| format!("{method} {path}")).collect()
    }
}

fn answer(status: u16, body: Value) -> Result<Answer, Lost> {
    Ok(Answer { status, retry_after: None, body: body.to_string().into() })
}

fn error(status: u16, code: i64) -> Result<Answer, Lost> {
    answer(status, json!({ "error": true, "code": code, "type": "T", "message": "m" }))
}

fn settings() -> Result<Answer, Lost> {
    answer(200, json!({ "webhook": { "enabled": true, "url": "u", "enabled_events": ["*"] } }))
}

fn lost() -> Result<Answer, Lost> {
    Err(Lost::Unanswered("the connection was lost".into()))
}

const WITH: &str = "/applications/APP/settings/webhook";
const WITHOUT: &str = "/applications/settings/webhook";

#[test]
fn the_second_path_of_the_settings_is_remembered() {
    for not_found in [error(400, 400_200), answer(404, json!({}))] {
        let mut script = Script::new([not_found, settings(), settings()]);
        script.run(async |api| {
            assert_eq!(api.webhook(true).await.expect("settings").enabled, Some(true));
            assert!(api.settings_are_of_the_token());
            api.set_webhook(&Change { enabled: Some(true), ..Change::default() }).await.expect("settings");
        });
        let all = "?display_all_webhook_categories=true";
        assert_eq!(
            script.paths(),
            [format!("GET {WITH}{all}"), format!("GET {WITHOUT}{all}"), format!("PUT {WITHOUT}")]
        );
    }
}

#[test]
fn the_first_path_is_kept_once_it_answered() {
    let mut script = Script::new([settings(), error(400, 400_200)]);
    script.run(async |api| {
        api.webhook(false).await.expect("settings");
        assert!(!api.settings_are_of_the_token());
        assert!(matches!(api.webhook(false).await, Err(Failure::NotFound(_))));
    });
    assert_eq!(script.paths(), [format!("GET {WITH}"), format!("GET {WITH}")]);
}

#[test]
fn an_application_that_is_nowhere_is_not_found() {
    let mut script = Script::new([error(400, 400_200), answer(404, json!({}))]);
    let failure = script.run(async |api| api.webhook(false).await).expect_err("not found");
    assert!(matches!(&failure, Failure::NotFound(refusal) if refusal.code == Some(400_200)), "{failure}");
    let mut script = Script::new([error(400, 400_200), error(401, 401_120)]);
    let failure = script.run(async |api| api.webhook(false).await).expect_err("not allowed");
    assert!(matches!(failure, Failure::NotAllowed(_)), "{failure}");
}

#[test]
fn a_get_is_tried_again_while_that_may_help() {
    let unsent = || Err(Lost::Unsent("refused".into()));
    let mut script = Script::new([lost(), error(500, 500_999), unsent(), error(503, 0), settings()]);
    script.run(async |api| api.webhook(false).await).expect("settings");
    let at: Vec<u128> = script.asked.iter().map(|(at, ..)| at.as_millis()).collect();
    assert_eq!(at, [0, 500, 1500, 3500, 7500]);

    let mut script = Script::new(std::iter::repeat_with(lost).take(5));
    assert!(matches!(script.run(async |api| api.webhook(false).await), Err(Failure::Unanswered(_))));
    assert_eq!(script.asked.len(), 5);
}

#[test]
fn what_does_not_help_is_not_tried_again() {
    let no_json = Ok(Answer { status: 200, retry_after: None, body: b"<html>".to_vec() });
    for answer in [error(400, 401_121), error(400, 400_100), error(400, 400_111), no_json] {
        let mut script = Script::new([answer]);
        script.run(async |api| api.webhook(false).await).expect_err("a failure");
        assert_eq!(script.asked.len(), 1);
    }
}

#[test]
fn a_put_is_never_repeated_in_doubt() {
    let change = Change { enabled: Some(true), ..Change::default() };
    for doubt in [lost(), error(500, 500_999), answer(502, json!({}))] {
        let mut script = Script::new([doubt]);
        let failure = script.run(async |api| api.set_webhook(&change).await).expect_err("a failure");
        assert!(failure.is_ambiguous(), "{failure}");
        assert_eq!(script.asked.len(), 1);
    }
    let limit = answer(429, json!({ "code": 429_100, "message": "Too many requests" }));
    let mut script = Script::new([Err(Lost::Unsent("refused".into())), limit, settings()]);
    script.run(async |api| api.set_webhook(&change).await).expect("settings");
    assert_eq!(script.asked.len(), 3, "these had no effect");
}

#[test]
fn the_rate_limit_is_waited_for_as_long_as_it_asks() {
    let limit = |seconds: Option<&str>| {
        let body = json!({ "code": 429_100, "message": "Too many requests" }).to_string().into();
        Ok(Answer { status: 429, retry_after: seconds.map(str::to_owned), body })
    };
    let mut script = Script::new([limit(Some("7")), limit(None), settings()]);
    script.run(async |api| api.webhook(false).await).expect("settings");
    let at: Vec<u64> = script.asked.iter().map(|(at, ..)| at.as_secs()).collect();
    assert_eq!(at, [0, 7, 8]);

    let mut script = Script::new([limit(Some("61"))]);
    let failure = script.run(async |api| api.webhook(false).await).expect_err("too long");
    assert!(failure.to_string().contains("for the next 61 s"), "{failure}");

    let mut script = Script::new(std::iter::repeat_with(|| limit(None)).take(5));
    assert!(matches!(script.run(async |api| api.webhook(false).await), Err(Failure::TooFast { .. })));
}

#[test]
fn no_more_is_asked_in_a_second_than_is_allowed() {
    let page = || answer(200, json!({ "rooms": [{ "room_id": "r" }], "next": null, "prev": null }));
    let mut script = Script::new(std::iter::repeat_with(page).take(30));
    script.run(async |api| {
        for _ in 0..30 {
            assert_eq!(api.rooms(&RoomsQuery::default(), None).await.expect("a page").items.len(), 1);
        }
    });
    let times: Vec<Duration> = script.asked.iter().map(|(at, ..)| *at).collect();
    for window in times.windows(11) {
        assert!(window[10] - window[0] > Duration::from_secs(1), "11 within a second: {window:?}");
    }
}

#[test]
fn lists_and_objects_have_their_paths() {
    let calls = answer(200, json!({ "calls": [{ "call_id": "a" }], "next": "n" }));
    let call = answer(200, json!({ "call_id": "a/b", "state": "ended" }));
    let rooms = answer(200, json!({ "rooms": [], "next": "", "prev": null }));
    let room = answer(200, json!({ "room": { "room_id": "r", "state": "open" } }));
    let stays = answer(200, json!({ "participants": [{ "participant_id": "p" }], "next": null }));
    let mut script = Script::new([calls, call, rooms, room, stays, answer(200, json!({ "odd": 1 }))]);
    script.run(async |api| {
        let page = api.direct_calls(100, Some("c")).await.expect("a page");
        assert_eq!((page.items[0].call_id.as_deref(), page.next.as_deref()), (Some("a"), Some("n")));
        assert_eq!(api.direct_call("a/b").await.expect("a call").state.as_deref(), Some("ended"));
        assert_eq!(api.rooms(&RoomsQuery::default(), None).await.expect("a page").next, None);
        assert_eq!(api.room("r").await.expect("a room").state.as_deref(), Some("open"));
        let stays = api.participants("r", 50, None).await.expect("a page");
        assert_eq!(stays.items[0].participant_id.as_deref(), Some("p"));
        assert!(matches!(api.room("r").await, Err(Failure::Unreadable(_))));
    });
    assert_eq!(
        script.paths(),
        [
            "GET /direct_calls?limit=100&next=c",
            "GET /direct_calls/a%2Fb",
            "GET /rooms",
            "GET /rooms/r",
            "GET /rooms/r/participants?limit=50",
            "GET /rooms/r",
        ]
    );
}
