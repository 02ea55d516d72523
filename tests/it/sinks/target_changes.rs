//! What somebody does to a broker while it is in use: a place is deleted, a permission taken, a limit reached, a broker
//! stops taking anything. The sink waits, says why, sets nothing aside and goes on by itself.

use std::collections::HashSet;

use crate::sinks::for_each_broker;
use crate::support::bridge::Config;
use crate::support::broker::{Kind, Limits, Message, Own, Place};
use crate::support::eventually;
use crate::support::oracle::{Arrived, Id};
use crate::support::samples::dial;
use crate::support::trial::{SINK, Trial};

for_each_broker! {
    what_is_deleted_and_made_again_gets_what_it_has_not_had
    a_lost_permission_is_waited_for
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_rabbitmq_queue_that_is_full_is_waited_for() {
    a_place_that_is_full_is_waited_for(Kind::RabbitMq);
}

#[cfg(feature = "nats")]
#[test]
fn a_nats_stream_that_is_full_is_waited_for() {
    a_place_that_is_full_is_waited_for(Kind::Nats);
}

fn arrived(place: &Place) -> Vec<Arrived> {
    place.consume().iter().map(Message::arrived).collect()
}

fn what_is_deleted_and_made_again_gets_what_it_has_not_had(kind: Kind) {
    let place = kind.place().made();
    let trial = Trial::start("deleted under load and made again", Config::new(), &place, None);
    let before = arrived(&place);
    place.remove();
    trial.tells("not_found");
    let published = trial.stands();
    place.make(Limits::default());
    trial.finish_given(|bridge, after| {
        let had: HashSet<Id> = before.iter().map(|event| event.id).collect();
        let has: HashSet<Id> = after.iter().map(|event| event.id).collect();
        // What was acknowledged and then deleted, unread, is all that may be missing.
        let missing = bridge.events().into_iter().map(|event| Arrived::envelope(&event.envelope));
        let missing: Vec<Arrived> = missing.filter(|it| !had.contains(&it.id) && !has.contains(&it.id)).collect();
        let deleted = published - had.difference(&has).count() as f64;
        eprintln!("{} read before, {deleted} deleted unread, {} after", had.len(), has.len());
        assert_eq!(missing.len() as f64, deleted, "of what is missing, not all was acknowledged and deleted");
        [before, missing, after].concat()
    });
}

fn a_lost_permission_is_waited_for(kind: Kind) {
    let guarded = Guarded::start(kind);
    let place = guarded.own.place().made();
    let address = Some(guarded.address(&place));
    // Longer than it takes to have the broker's own tools take it.
    let trial = Trial::longer(4, "permission taken and given back", guarded.config(), &place, address);
    guarded.allow(&place, false);
    trial.tells("not_authorized");
    trial.stands();
    guarded.allow(&place, true);
    trial.finish();

    // A bridge that starts without it.
    let place = guarded.own.place().made();
    guarded.allow(&place, false);
    let way = Place { address: guarded.address(&place), ..place.clone() };
    let bridge = way.sink(guarded.config(), SINK).start();
    let answered: Vec<String> = (0..50).map(|n| bridge.deliver(&dial("same", n)).stored()).collect();
    let refused = [("sink", SINK), ("reason", "not_authorized")];
    eventually("it is reported", || bridge.metric("sendbird_bridge_sink_retries_total", &refused) > 0.0);
    guarded.allow(&place, true);
    bridge.caught_up();
    assert_eq!(first_appearances(&place), answered);
}

fn first_appearances(place: &Place) -> Vec<String> {
    let mut seen = HashSet::new();
    place.consume().into_iter().map(|message| message.id).filter(|id| seen.insert(id.clone())).collect()
}

#[cfg(any(feature = "rabbitmq", feature = "nats"))]
fn a_place_that_is_full_is_waited_for(kind: Kind) {
    let place = kind.place();
    place.make(Limits { messages: Some(2_500), ..Limits::default() });
    let trial = Trial::longer(2, "full", Config::new(), &place, None);
    trial.tells("unavailable");
    trial.stands();
    // Somebody makes more room, or reads and removes what is there.
    #[cfg(feature = "nats")]
    if kind == Kind::Nats {
        use crate::support::broker::nats;
        nats::change(&place, Limits { messages: Some(3_000), ..Limits::default() });
        eventually("there is more room", || trial.published() == 3_000.0);
        trial.stands();
    }
    let before = arrived(&place);
    #[cfg(feature = "nats")]
    if kind == Kind::Nats {
        crate::support::broker::nats::purge(&place);
    }
    let full = before.len();
    trial.finish_given(|_, after| {
        eprintln!("{full} read when it was full, {} after", after.len());
        [before, after].concat()
    });
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_rabbitmq_alarm_holds_up_nobody_but_the_sink() {
    let own = Own::start(Kind::RabbitMq);
    let (place, late) = (own.place().made(), own.place().made());
    for (what, alarm, clear) in [
        ("memory alarm", ["set_vm_memory_high_watermark", "0"], ["set_vm_memory_high_watermark", "0.6"]),
        ("disk alarm", ["set_disk_free_limit", "999999GB"], ["set_disk_free_limit", "50MB"]),
    ] {
        let trial = Trial::longer(4, what, Config::new(), &place, None);
        own.ctl(&alarm);
        trial.tells("unavailable");
        let connected = || trial.bridge.metric("sendbird_bridge_sink_connected", &[("sink", SINK)]);
        eventually("the broker counts as out of reach", || connected() == 0.0);
        trial.stands();
        // A bridge that starts meanwhile.
        let bridge = late.sink(Config::new(), SINK).start();
        let answered: Vec<String> = (0..50).map(|n| bridge.deliver(&dial("same", n)).stored()).collect();
        let refused = [("sink", SINK), ("reason", "unavailable")];
        eventually("it is reported", || bridge.metric("sendbird_bridge_sink_retries_total", &refused) > 0.0);
        own.ctl(&clear);
        bridge.caught_up();
        assert_eq!(first_appearances(&late), answered);
        trial.finish();
    }
}

/// A queue whose process is suspended is given messages and confirms none.
#[cfg(feature = "rabbitmq")]
#[test]
fn a_rabbitmq_queue_that_does_not_confirm_holds_up_no_other_queue() {
    // More than the sink has channels in its pool.
    const EACH: u64 = 100;
    let own = Own::start(Kind::RabbitMq);
    let (place, silent) = (own.place(), own.place());
    let queue = |place: &Place, prefix: &str| {
        let bindings: Vec<String> = (0..EACH).map(|n| format!("'{prefix}-{n}'")).collect();
        format!("{{ name = '{}', type = 'classic', bindings = [{}] }}", place.name, bindings.join(", "))
    };
    let bridge = place
        .sink(Config::new(), SINK)
        .set(&format!("sinks.{SINK}.routing_key"), "'{key}'")
        .set(
            &format!("sinks.{SINK}.declare"),
            &format!("{{ queues = [{}, {}] }}", queue(&place, "heard"), queue(&silent, "silent")),
        )
        .start();
    let connections = || bridge.log().so_far().iter().filter(|line| line.contains("sink connected")).count();
    eventually("the queues are declared", || connections() == 1);
    let process = |verb: &str| {
        let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{}\">>)", silent.name);
        let call = format!("{{ok, Q}} = rabbit_amqqueue:lookup({name}), sys:{verb}(amqqueue:get_pid(Q)).");
        own.ctl(&["eval", &call]);
    };
    process("suspend");
    for prefix in ["silent", "heard"] {
        for n in 0..EACH {
            assert_eq!(bridge.deliver(&dial(&format!("{prefix}-{n}"), n)).status, 200);
        }
    }
    eventually("the other queue has all", || place.count() == EACH);
    process("resume");
    bridge.caught_up();
    assert_eq!((silent.count(), place.count(), connections()), (EACH, EACH, 1), "each once, over one connection");
}

/// A broker on which the bridge's right to publish can be taken away.
struct Guarded {
    own: Own,
}

/// Who the bridge is there, where that has to be somebody.
const USER: &str = "bridge";
const PASSWORD: &str = "EXAMPLE";

impl Guarded {
    fn start(kind: Kind) -> Self {
        let own = match kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => Own::configured(
                kind,
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 allow.everyone.if.no.acl.found=true\n",
            ),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => {
                let own = Own::start(kind);
                own.ctl(&["add_user", USER, PASSWORD]);
                own.ctl(&["set_permissions", USER, "", ".*", ""]);
                own
            }
            #[cfg(feature = "nats")]
            Kind::Nats => Own::configured(kind, &nats_users("")),
        };
        Self { own }
    }

    /// The address for that user. Where there are no names in addresses, it is everybody's.
    fn address(&self, place: &Place) -> String {
        place.address.replace("guest:guest@", &format!("{USER}:{PASSWORD}@"))
    }

    /// The rest of what the bridge needs to be that user.
    fn config(&self) -> Config {
        let user = format!("{{ username = '{USER}', password = '{PASSWORD}' }}");
        match self.own.kind {
            #[cfg(feature = "nats")]
            Kind::Nats => Config::new().set(&format!("sinks.{SINK}.credentials"), &user),
            #[allow(unreachable_patterns, reason = "in a build with this one client there is no other")]
            _ => Config::new(),
        }
    }

    fn allow(&self, place: &Place, allowed: bool) {
        match self.own.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => crate::support::broker::kafka::allow_writing(place, allowed),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => {
                self.own.ctl(&["set_permissions", USER, "", if allowed { ".*" } else { "" }, ""]);
                // A channel that is open remembers what it may.
                self.own.ctl(&["close_all_connections", "the permissions have changed"]);
            }
            #[cfg(feature = "nats")]
            Kind::Nats => {
                self.own.configure(&nats_users(if allowed { "" } else { &place.name }));
                self.own.run("reload");
            }
        }
    }
}

/// Anybody may do anything, except the bridge to these subjects.
#[cfg(feature = "nats")]
fn nats_users(denied: &str) -> String {
    let deny =
        if denied.is_empty() { String::new() } else { format!(", permissions: {{publish: {{deny: \"{denied}.>\"}}}}") };
    format!(
        "authorization {{ users: [ {{user: test, password: test}}, {{user: {USER}, password: {PASSWORD}{deny}}} ] }}\n\
         no_auth_user: test\n"
    )
}
