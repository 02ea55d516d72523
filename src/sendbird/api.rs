//! The Calls Platform API: what is asked of Sendbird, how often, and what its answers mean.
//!
//! Owns the client: paths, pages, the pace that Sendbird allows, and which failure is tried again. It computes only; the
//! HTTP, the time and the waiting are its [`Transport`]'s, which whoever uses it brings along.
//!
//! Promises: never faster than Sendbird's documented limits for one application and endpoint; every wait and every
//! number of tries has a bound; and nothing is written twice in doubt. A `GET` is tried again after any failure that may
//! pass. A `PUT` is tried again only if it certainly had no effect: the rate limit refused it, or there was no
//! connection. HTTP calls `PUT` idempotent, but one that is repeated after a lost answer could undo what somebody else
//! has set in between; so after a doubt the caller reads the settings back and decides.
//!
//! Nobody who wrote this has tried it against the live API. Doc comments say how well a fact is known, as everywhere in
//! [`super`]: *documented* on Sendbird's public pages, *likely*, or *guessed*.

pub mod failure;
mod fields;
pub mod list;
pub mod objects;
pub mod request;
mod throttle;
pub mod webhook;

use std::time::Duration;

use serde_json::Value;

pub use self::failure::{Failure, Lost};
pub use self::list::{Page, Pagination, RoomsQuery};
pub use self::objects::{CallParticipant, DirectCall, Participant, Room};
pub use self::request::{Answer, ApplicationId, Method, Request, Target};
pub use self::webhook::{Change, Setting, Webhook};

use self::request::{Endpoint, segment};
use self::throttle::Throttle;
use crate::domain::backoff::Backoff;

/// How often one request is sent at most.
pub const TRIES: u32 = 5;

/// Between two tries of one request.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(8) };

/// After the rate limit has refused a request that does not say how long to wait. The limits are for one second each.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// A longer wait that Sendbird asks for is not waited for: the failure says how long it would be.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// HTTP, time and chance, for a client that only computes.
pub trait Transport {
    /// Sends one request, once, and gives its whole answer. Both are bounded in time and size.
    fn exchange(&mut self, request: &Request) -> impl Future<Output = Result<Answer, Lost>> + Send;

    /// Waits.
    fn sleep(&mut self, pause: Duration) -> impl Future<Output = ()> + Send;

    /// A time that never goes back, from any beginning.
    fn now(&self) -> Duration;

    /// Between 0 and 1, for the length of pauses.
    fn random(&mut self) -> f64;
}

/// Which of the two paths the webhook settings have. *Likely* the first; the second is how the Chat API has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SettingsPath {
    Unknown,
    WithApplication,
    WithoutApplication,
}

/// A client of the API for one application. One request at a time.
#[derive(Debug)]
pub struct Api<T> {
    target: Target,
    transport: T,
    throttle: Throttle,
    settings_path: SettingsPath,
}

impl<T: Transport> Api<T> {
    /// A client that has asked nothing yet.
    pub fn new(target: Target, transport: T) -> Self {
        Self { target, transport, throttle: Throttle::default(), settings_path: SettingsPath::Unknown }
    }

    /// The application that it asks for.
    pub fn application(&self) -> &ApplicationId {
        self.target.application()
    }

    /// Where it asks.
    pub fn base(&self) -> &str {
        self.target.base()
    }

    /// Whether the webhook settings were found only under the path that does not name the application. The token alone
    /// then says whose they are.
    pub fn settings_are_of_the_token(&self) -> bool {
        self.settings_path == SettingsPath::WithoutApplication
    }

    /// The webhook settings; with `all_categories` also the names of all events that Sendbird can send (documented).
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn webhook(&mut self, all_categories: bool) -> Result<Webhook, Failure> {
        let query = if all_categories { "?display_all_webhook_categories=true" } else { "" };
        let answer = self.settings(query, None).await?;
        Webhook::parse(&answer)
    }

    /// Changes the webhook settings that `change` names, and leaves the others. Gives them as the answer has them.
    ///
    /// # Errors
    /// See [`Failure`]; if it [`Failure::is_ambiguous`], the change may have been made.
    pub async fn set_webhook(&mut self, change: &Change) -> Result<Webhook, Failure> {
        let answer = self.settings("", Some(change)).await?;
        Webhook::parse(&answer)
    }

    /// One page of the direct calls (likely), `limit` at once (1 to 100). `cursor` is a page's [`Page::next`]; `None` begins.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn direct_calls(&mut self, limit: u32, cursor: Option<&str>) -> Result<Page<DirectCall>, Failure> {
        let path = format!("/direct_calls{}", list::page(limit, cursor));
        let answer = self.get(Endpoint::Calls, &path).await?;
        Page::parse(&answer, &["calls", "direct_calls"], DirectCall::parse)
    }

    /// One direct call (likely).
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn direct_call(&mut self, call_id: &str) -> Result<DirectCall, Failure> {
        let answer = self.get(Endpoint::Call, &format!("/direct_calls/{}", segment(call_id))).await?;
        one(&answer, "direct_call", "call_id", DirectCall::parse)
    }

    /// One page of the rooms (documented). `cursor` is a page's [`Page::next`]; `None` begins.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn rooms(&mut self, query: &RoomsQuery, cursor: Option<&str>) -> Result<Page<Room>, Failure> {
        let path = format!("/rooms{}", query.write(cursor));
        let answer = self.get(Endpoint::Rooms, &path).await?;
        Page::parse(&answer, &["rooms"], Room::parse)
    }

    /// One room (documented).
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn room(&mut self, room_id: &str) -> Result<Room, Failure> {
        let answer = self.get(Endpoint::Room, &format!("/rooms/{}", segment(room_id))).await?;
        one(&answer, "room", "room_id", Room::parse)
    }

    /// One page of all that were or are in a room (documented), `limit` at once (1 to 100).
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn participants(
        &mut self,
        room_id: &str,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<Page<Participant>, Failure> {
        let path = format!("/rooms/{}/participants{}", segment(room_id), list::page(limit, cursor));
        let answer = self.get(Endpoint::Participants, &path).await?;
        Page::parse(&answer, &["participants"], Participant::parse)
    }

    async fn get(&mut self, endpoint: Endpoint, path: &str) -> Result<Value, Failure> {
        let request = self.target.request(Method::Get, path, None);
        self.ask(endpoint, &request).await
    }

    /// Under the path that is known, or under the first of the two that is not answered "not found". What is not found
    /// has no effect, so a change may be tried under both.
    async fn settings(&mut self, query: &str, change: Option<&Change>) -> Result<Value, Failure> {
        let method = if change.is_some() { Method::Put } else { Method::Get };
        let with = format!("/applications/{}/settings/webhook{query}", self.target.application());
        let with = self.target.request(method, &with, change.map(Change::body));
        let without =
            self.target.request(method, &format!("/applications/settings/webhook{query}"), change.map(Change::body));
        if self.settings_path == SettingsPath::WithoutApplication {
            return self.ask(Endpoint::Settings, &without).await;
        }
        match self.ask(Endpoint::Settings, &with).await {
            Ok(answer) => {
                self.settings_path = SettingsPath::WithApplication;
                Ok(answer)
            }
            Err(Failure::NotFound(refusal)) if self.settings_path == SettingsPath::Unknown => {
                match self.ask(Endpoint::Settings, &without).await {
                    Ok(answer) => {
                        self.settings_path = SettingsPath::WithoutApplication;
                        Ok(answer)
                    }
                    // The first says more: it has the application in it.
                    Err(Failure::NotFound(_)) => Err(Failure::NotFound(refusal)),
                    Err(other) => Err(other),
                }
            }
            Err(other) => Err(other),
        }
    }

    /// Sends a request in its turn, and again where that is safe and may help.
    async fn ask(&mut self, endpoint: Endpoint, request: &Request) -> Result<Value, Failure> {
        let mut tried = 0;
        loop {
            let wait = self.throttle.wait(endpoint, request.method, self.transport.now());
            if !wait.is_zero() {
                self.transport.sleep(wait).await;
            }
            self.throttle.sent(endpoint, request.method, self.transport.now());
            let exchanged = self.transport.exchange(request).await;
            self.throttle.ended(endpoint, request.method, self.transport.now());
            let answered = match exchanged {
                Ok(answer) => failure::sort(&answer, request),
                Err(lost) => Err(lost.into()),
            };
            let failure = match answered {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            tried += 1;
            let Some(pause) = pause(request.method, &failure, tried, self.transport.random()) else {
                return Err(failure);
            };
            self.transport.sleep(pause).await;
        }
    }
}

/// How long to wait before a request is sent again that has failed so `tried` times, or `None` if it is not.
fn pause(method: Method, failure: &Failure, tried: u32, random: f64) -> Option<Duration> {
    if tried >= TRIES {
        return None;
    }
    let growing = AGAIN.pause(tried - 1, random);
    match failure {
        Failure::TooFast { wait, .. } => {
            let wait = wait.unwrap_or_else(|| growing.max(SHORTEST_WAIT));
            (wait <= LONGEST_WAIT).then_some(wait)
        }
        Failure::Unreached(_) => Some(growing),
        Failure::Unanswered(_) | Failure::Broken(_) => (method == Method::Get).then_some(growing),
        Failure::NotAllowed(_) | Failure::NotFound(_) | Failure::Refused(_) | Failure::Unreadable(_) => None,
    }
}

/// An object that is answered alone or under its name.
fn one<T>(answer: &Value, name: &str, id: &str, parse: fn(&Value) -> Option<T>) -> Result<T, Failure> {
    let object = answer.get(name).filter(|nested| nested.is_object()).unwrap_or(answer);
    let parsed = object.get(id).is_some().then(|| parse(object)).flatten();
    parsed.ok_or_else(|| Failure::Unreadable(format!("expected an object with {id}, but found none")))
}

#[cfg(test)]
mod tests;
