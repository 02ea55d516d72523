//! The properties of the client library that nobody but the bridge may set.

/// Why a property can't be given under `client`, if it can't.
pub(super) fn refusal(key: &str) -> Option<&'static str> {
    Some(match key {
        "bootstrap.servers" | "metadata.broker.list" => "a property that `brokers` does not set",
        "security.protocol" | "ssl.ca.location" | "ssl.certificate.location" | "ssl.key.location" => {
            "a property that `tls` and `sasl` do not set"
        }
        "acks" | "request.required.acks" => "a durability other than acks=all to be left alone",
        "enable.idempotence"
        | "max.in.flight"
        | "max.in.flight.requests.per.connection"
        | "retries"
        | "message.send.max.retries"
        | "enable.gapless.guarantee"
        | "queuing.strategy"
        | "msg_order_cmp" => "a property that neither reorders nor doubles records",
        "message.timeout.ms" | "delivery.timeout.ms" => "a property that never gives up on a record",
        "partitioner" | "partitioner_cb" => "the partitioner to stay Java's",
        "transactional.id" | "transaction.timeout.ms" => "no transactions: each event is acknowledged alone",
        "allow.auto.create.topics" => "a property that creates no topics; see `create_topics`",
        "queue.buffering.max.messages" | "queue.buffering.max.kbytes" => "the journal to stay the queue",
        "delivery.report.only.error" | "dr_cb" | "dr_msg_cb" | "produce.offset.report" | "opaque" => {
            "a property that keeps the delivery reports"
        }
        "statistics.interval.ms" | "log_level" | "log.queue" | "log.connection.close" | "enabled_events" => {
            "a property that the bridge does not need itself"
        }
        "enable.ssl.certificate.verification" | "ssl.endpoint.identification.algorithm" => {
            "the broker's certificate and its name to be verified; give `tls.ca_file`"
        }
        "ssl.engine.location" | "ssl.engine.id" => "no foreign code in the bridge",
        _ if key.starts_with("plugin.") => "no foreign code in the bridge",
        "default_topic_conf" | "interceptors" => "a property that is a text",
        _ if key.ends_with("_cb") => "a property that is a text",
        // Shown by whatever prints the configuration; and the way to log in is a setting of its own.
        _ if key.starts_with("sasl.") || key.starts_with("enable.sasl.") => "a property that `sasl` does not set",
        _ if key.starts_with("ssl.") && secret(key) => "no secret in plain sight; see `tls`",
        _ if key.starts_with("ssl_") || key.starts_with("ssl.keystore.") => "no secret in plain sight; see `tls`",
        _ => return None,
    })
}

fn secret(key: &str) -> bool {
    key.ends_with(".password") || key.ends_with(".pem")
}
