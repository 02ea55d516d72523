"""Reads every message with the Python SDK of CloudEvents, and prints each event as a JSON line.

Owns: what Python needs to read the bridge's messages, both content modes, from each broker. Promises: `count` messages of
each place, and no more. Leaves the comparison to check.py. Where an SDK has no binding for a broker, what stands in for
it is the function of that broker alone.
"""
import asyncio
import json
import os
import sys

import confluent_kafka
import nats
import pika
from cloudevents.core.bindings import amqp, http, kafka

plan = json.loads(os.environ["INTEROP"])


def say(broker, mode, event):
    attributes = dict(event.get_attributes())
    attributes["time"] = attributes["time"].isoformat()
    print(json.dumps({"broker": broker, "mode": mode, "event": {**attributes, "data": event.get_data()}}))


def is_structured(content_type):
    return (content_type or "").startswith("application/cloudevents")


def from_kafka(message):
    headers = dict(message.headers())
    read = kafka.KafkaMessage(headers=headers, key=message.key(), value=message.value())
    # Not from_kafka_event: it takes any `ce_` header for a sign of the binary mode. The specification's is the content type.
    if is_structured(headers["content-type"].decode()):
        return kafka.from_structured_event(read)
    return kafka.from_binary_event(read)


def from_rabbitmq(properties, body):
    # The binding of AMQP, whose attributes are `cloudEvents:`; the SDK's binding named RabbitMQ is Knative's, with `ce-`.
    return amqp.from_amqp_event(amqp.AMQPMessage(
        properties={"content-type": properties.content_type},
        application_properties=properties.headers,
        application_data=body,
    ))


def from_nats(message):
    # The SDK has no binding for NATS. HTTP's has the same names and the same encoding of values.
    read = http.HTTPMessage(headers=message.headers, body=message.data)
    if is_structured(message.headers["Content-Type"]):
        return http.from_structured_event(read)
    return http.from_binary_event(read)


def read_kafka(mode, topics):
    consumer = confluent_kafka.Consumer({
        "bootstrap.servers": os.environ["KAFKA_BROKERS"],
        "group.id": f"python.{topics[0]}",
        "auto.offset.reset": "earliest",
    })
    consumer.subscribe(topics)
    left = plan["count"]
    while left:
        message = consumer.poll(30)
        if message is None or message.error():
            sys.exit(f"expected {left} more messages of {topics}, but found {message and message.error()}")
        say("kafka", mode, from_kafka(message))
        left -= 1
    consumer.close()


def read_rabbitmq(mode, queue):
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"]))
    left = plan["count"]
    for method, properties, body in connection.channel().consume(queue, auto_ack=True, inactivity_timeout=30):
        if method is None:
            sys.exit(f"expected {left} more messages in {queue}, but found none")
        say("rabbitmq", mode, from_rabbitmq(properties, body))
        left -= 1
        if not left:
            break
    connection.close()


async def read_nats(mode, stream):
    connection = await nats.connect(os.environ["NATS_URL"])
    subscription = await connection.jetstream().subscribe(f"{stream}.>", stream=stream, ordered_consumer=True)
    for _ in range(plan["count"]):
        say("nats", mode, from_nats(await subscription.next_msg(timeout=30)))
    await connection.close()


for mode, place in plan["kafka"].items():
    read_kafka(mode, place)
for mode, place in plan["rabbitmq"].items():
    read_rabbitmq(mode, f"{place}-python")
for mode, place in plan["nats"].items():
    asyncio.run(read_nats(mode, place))
