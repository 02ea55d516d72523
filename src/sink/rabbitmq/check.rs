//! `config check --connect`: asks the broker, and changes nothing there.
//!
//! Whether the exchange is there and the user may publish to it under a routing key is answered to nobody but a publisher.
//! So an empty message is published in a transaction that is rolled back: the broker looks at both at once, and
//! routes the message only at the commit, which never comes.
//!
//! Over AMQP the broker says nothing of bindings. What the sink declares by itself is compared with the routing keys.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Connection, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use super::errors::blocked;
use super::settings::{Declare, Queue};
use super::{CONNECT, RabbitMq, target, topology};
use crate::sink::{Failure, Fault, Finding, Reason};

/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a routing key is asked about while the broker's reason is not received.
const TRIES: u32 = 10;
/// Stands for what is not known of a routing key.
const UNKNOWN: &str = "sendbird-bridge-check";

pub(super) async fn check(sink: &RabbitMq, create: bool) -> Vec<Finding> {
    let (connection, _hangup) = match timeout(CONNECT, sink.dial()).await {
        Ok(Ok(dialed)) => dialed,
        Ok(Err(failure)) => return vec![Finding::Fault(failure.fault().clone())],
        Err(_elapsed) => {
            let detail = format!("{}: no connection within {CONNECT:?}", sink.address());
            return vec![Finding::fault(Reason::Timeout, detail)];
        }
    };
    let mut findings = Vec::new();
    let checked = Check { sink, connection: &connection, declare: sink.settings.declare.as_option() };
    match checked.topology(create, &mut findings).await {
        Ok(true) => findings.extend(checked.routing_keys().await),
        Ok(false) => {}
        Err(fault) => findings.push(Finding::Fault(fault)),
    }
    findings.extend(checked.bindings());
    findings.extend(sink.settings.warnings().into_iter().map(Finding::Warning));
    // Only a courtesy: the socket is cut all the same.
    let _best_effort = timeout(ANSWER, connection.close(200, "OK".into())).await;
    findings
}

struct Check<'a> {
    sink: &'a RabbitMq,
    connection: &'a Connection,
    declare: Option<&'a Declare>,
}

impl Check<'_> {
    /// Looks at the exchange, and at the queues that the sink declares. Whether the exchange is there now.
    async fn topology(&self, create: bool, findings: &mut Vec<Finding>) -> Result<bool, Fault> {
        let exchange = &self.sink.exchange;
        let has_exchange = self.has_exchange().await?;
        let Some(declare) = self.declare else {
            if !has_exchange {
                let detail = format!(
                    "exchange \"{exchange}\" does not exist in the virtual host \"{}\": create it, or set declare",
                    self.sink.uri.vhost
                );
                findings.push(Finding::fault(Reason::NotFound, detail));
            }
            return Ok(has_exchange);
        };
        let mut missing = Vec::new();
        if !has_exchange {
            missing.push(format!("exchange \"{exchange}\" of the type {}", declare.exchange_type));
        }
        for queue in &declare.queues {
            if !self.has_queue(queue).await? {
                missing.push(format!("queue \"{}\" of the type {}", queue.name, queue.r#type.as_str()));
            }
        }
        if create {
            self.answer(topology::check(self.connection, exchange, Some(declare))).await?;
            findings.extend(missing.into_iter().map(Finding::Created));
            return Ok(true);
        }
        findings.extend(missing.into_iter().map(Finding::WillCreate));
        Ok(has_exchange)
    }

    /// Whether the exchange exists. One that the sink declares is declared as it will be at the start, which changes nothing
    /// where it exists, and fails where it is different.
    async fn has_exchange(&self) -> Result<bool, Fault> {
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let exists = self.exists(self.declare_exchange(ExchangeKind::Topic, passive)).await?;
        if let (true, Some(declare)) = (exists, self.declare) {
            let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
            self.answer(self.declare_exchange(ExchangeKind::Custom(declare.exchange_type.clone()), durable)).await?;
        }
        Ok(exists)
    }

    async fn declare_exchange(&self, kind: ExchangeKind, options: ExchangeDeclareOptions) -> lapin::Result<()> {
        let channel = self.connection.create_channel().await?;
        channel.exchange_declare(self.sink.exchange.clone(), kind, options, FieldTable::default()).await?;
        channel.close(200, "OK".into()).await
    }

    /// The same for a queue.
    async fn has_queue(&self, queue: &Queue) -> Result<bool, Fault> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let exists = self.exists(self.declare_queue(queue, passive)).await?;
        if exists {
            self.answer(self.declare_queue(queue, topology::DURABLE)).await?;
        }
        Ok(exists)
    }

    async fn declare_queue(&self, queue: &Queue, options: QueueDeclareOptions) -> lapin::Result<()> {
        let channel = self.connection.create_channel().await?;
        channel.queue_declare(queue.name.as_str().into(), options, topology::arguments(queue)).await?;
        channel.close(200, "OK".into()).await
    }

    /// Whether what was asked about is there.
    async fn exists(&self, asked: impl Future<Output = lapin::Result<()>>) -> Result<bool, Fault> {
        let is_missing = |error: &lapin::Error| matches!(error.kind(), ErrorKind::ProtocolError(answer) if matches!(answer.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)));
        match timeout(ANSWER, asked).await {
            Ok(Err(error)) if is_missing(&error) => Ok(false),
            answered => self.settle(answered).map(|()| true),
        }
    }

    async fn answer(&self, asked: impl Future<Output = lapin::Result<()>>) -> Result<(), Fault> {
        self.settle(timeout(ANSWER, asked).await)
    }

    fn settle(&self, answered: Result<lapin::Result<()>, tokio::time::error::Elapsed>) -> Result<(), Fault> {
        let failure = match answered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => self.sink.unconnected(&error),
            Err(_elapsed) if self.connection.status().blocked() => blocked(),
            Err(_elapsed) => Failure::every_event(Reason::Timeout, format!("no answer within {ANSWER:?}")),
        };
        Err(failure.naming_connection(&self.sink.address(), &self.sink.user()).fault().clone())
    }

    /// Asks whether the user may publish under each kind of routing key that events can have.
    async fn routing_keys(&self) -> Vec<Finding> {
        let known = &self.sink.known;
        let keys: BTreeSet<String> =
            known.iter().map(|known| self.sink.routing_key.render_known(known, UNKNOWN).0).collect();
        let mut findings = Vec::new();
        for key in keys {
            if let Err(fault) = self.answer(self.may_publish(&key)).await {
                let target = target(&self.sink.exchange, &key.replace(UNKNOWN, "*"));
                let named = Failure::Reject(fault).naming(&target);
                findings.push(Finding::Fault(named.fault().clone()));
            }
            // Nothing is answered any more.
            if !self.connection.status().connected() || self.connection.status().blocked() {
                break;
            }
        }
        findings
    }

    /// Where the broker closes the channel just before the rollback, the client knows only that it is closed; then once more.
    async fn may_publish(&self, key: &str) -> lapin::Result<()> {
        for _ in 0..TRIES {
            match self.publish_and_roll_back(key).await {
                Err(error)
                    if matches!(error.kind(), ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_)) => {}
                answered => return answered,
            }
        }
        self.publish_and_roll_back(key).await
    }

    async fn publish_and_roll_back(&self, key: &str) -> lapin::Result<()> {
        let channel = self.connection.create_channel().await?;
        channel.tx_select().await?;
        let (exchange, key) = (self.sink.exchange.clone(), ShortString::from(key));
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        // It is not in confirm mode, so there is no confirmation to wait for.
        let _unconfirmed = channel.basic_publish(exchange, key, options, &[], BasicProperties::default()).await?;
        channel.tx_rollback().await?;
        channel.close(200, "OK".into()).await
    }

    /// Which routing keys the queues do not take that the sink binds, and what only the broker's operator can see.
    fn bindings(&self) -> Vec<Finding> {
        let exchange = &self.sink.exchange;
        let patterns: BTreeSet<String> =
            self.sink.known.iter().map(|known| self.sink.routing_key.pattern(known)).collect();
        let queues = self.declare.map(|declare| (declare.exchange_type.as_str(), &declare.queues));
        let takes: Option<fn(&str, &str) -> bool> = match queues {
            Some(("topic", queues)) if !queues.is_empty() => Some(topology::takes),
            Some(("direct", queues)) if !queues.is_empty() => Some(|binding, key| binding == key),
            Some(("fanout", queues)) if !queues.is_empty() => Some(|_, _| true),
            _ => None,
        };
        let (Some(takes), Some((_, queues))) = (takes, queues) else {
            let detail = format!(
                "whether a queue is bound to exchange \"{exchange}\" for {}; AMQP does not tell, `rabbitmqctl list_bindings` \
                 does; without one, events become dead letters",
                patterns.iter().map(|pattern| format!("\"{pattern}\"")).collect::<Vec<_>>().join(", ")
            );
            return vec![Finding::NotChecked(detail)];
        };
        let bindings: Vec<&str> = queues.iter().flat_map(|queue| queue.bindings.iter().map(String::as_str)).collect();
        let not_taken: Vec<String> = patterns
            .iter()
            .filter(|pattern| !bindings.iter().any(|binding| takes(binding, pattern)))
            .map(|pattern| format!("\"{pattern}\""))
            .collect();
        if not_taken.is_empty() {
            return Vec::new();
        }
        let detail = format!(
            "whether a queue is bound to exchange \"{exchange}\" for {}: no queue under declare.queues is; without one, events \
             become dead letters",
            not_taken.join(", ")
        );
        vec![Finding::NotChecked(detail)]
    }
}
