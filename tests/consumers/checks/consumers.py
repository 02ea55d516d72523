"""Owns: what must hold for the nine consumers of docs/consumers.md.

Promises: each is killed between the work and the commit, started again, and then has worked on each event once, in order
by key, in spite of copies and of messages that are none; its position is behind all of them. Leaves the bridge to the
caller.
"""
import asyncio
import json
import os
import signal
from pathlib import Path

import confluent_kafka
import nats
import pika

from support import BROKERS, HERE, LANGUAGES, Program, by_key, eventually

# When it is killed; more than what may be worked on but not yet committed, so that a start from the beginning shows.
CRASH_AFTER = 30
UNCOMMITTED = 20
POISON = b"{ this is no envelope"
FILES = {"kafka": "kafka", "rabbitmq": "rabbitmq", "nats": "nats_jetstream"}


class Consumer:
    """One of the nine, and what is its own in the broker."""

    def __init__(self, options, bridge, broker, language):
        self.broker, self.language = broker, language
        self.name = f"{bridge.run}-{language}"
        self.place = bridge.place(broker, "structured")
        self.file = Path(options.scratch) / f"{broker}-{language}.work"
        stem = FILES[broker]
        self.command = {
            "python": [options.python, HERE / "python" / f"{stem}.py"],
            "javascript": [options.node, Path(options.scratch) / f"{stem}.mjs"],
            "go": [Path(options.go) / stem],
        }[language]
        self.environment = {"WORK_FILE": str(self.file), **{
            "kafka": lambda: {
                "KAFKA_BROKERS": os.environ["TEST_KAFKA_BROKERS"], "KAFKA_TOPICS": ",".join(self.place),
                "KAFKA_GROUP": self.name, "KAFKA_MEMBER": f"{self.name}-1",
            },
            "rabbitmq": lambda: {
                "RABBITMQ_URL": os.environ["TEST_RABBITMQ_URL"], "RABBITMQ_EXCHANGE": self.place,
                "RABBITMQ_QUEUE": self.name,
            },
            "nats": lambda: {
                "NATS_URL": os.environ["TEST_NATS_URL"], "NATS_STREAM": self.place, "NATS_CONSUMER": self.name,
                "NATS_ACK_WAIT": "2",
            },
        }[broker]()}
        self.copies = 0

    def __str__(self):
        return f"{self.broker}, {self.language}"

    def start(self, **more):
        self.program = Program(self.command, {**self.environment, **more})

    def done(self):
        """What was worked on, in that order."""
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]


def rabbitmq():
    return pika.BlockingConnection(pika.URLParameters(os.environ["TEST_RABBITMQ_URL"]))


def queue_exists(name):
    with rabbitmq() as connection:
        try:
            connection.channel().queue_declare(name, passive=True)
            return True
        except pika.exceptions.ChannelClosedByBroker:
            return False


def start_first(options, bridge):
    """All nine, before anything is sent: the queue of a RabbitMQ consumer gets what comes from then on."""
    all_nine = [Consumer(options, bridge, broker, language) for broker in BROKERS for language in LANGUAGES]
    dead = bridge.place("rabbitmq", "structured") + ".dead"
    with rabbitmq() as connection:
        channel = connection.channel()
        channel.exchange_declare(dead, "fanout", durable=True)
        channel.queue_declare(dead, durable=True)
        channel.queue_bind(dead, dead)
    for consumer in all_nine:
        if consumer.broker == "rabbitmq":
            consumer.start(CRASH_AFTER=str(CRASH_AFTER))
            eventually(f"the queue of {consumer} is there", lambda name=consumer.name: queue_exists(name))
    return all_nine


def crash(checks, all_nine):
    """Lets each work until it dies with the work done and not committed."""
    for consumer in all_nine:
        if consumer.broker != "rabbitmq":
            consumer.start(CRASH_AFTER=str(CRASH_AFTER))
    faults = []
    for consumer in all_nine:
        code = consumer.program.wait()
        found = len(consumer.done())
        if code != -signal.SIGKILL or found != CRASH_AFTER:
            faults.append(f"{consumer}: expected {CRASH_AFTER} events and a kill, but found {found} and {code}: "
                          f"{consumer.program.errors[-5:]}")
        consumer.copies += len(consumer.program.lines("copy: "))
    checks.report("each consumer is killed between the work and the commit", faults, len(all_nine))


async def poison_nats(stream):
    connection = await nats.connect(os.environ["TEST_NATS_URL"])
    await connection.jetstream().publish(f"{stream}.direct_call.dial.none", POISON)
    await connection.close()


def poison(bridge):
    """A message that is no envelope, at each broker."""
    producer = confluent_kafka.Producer({"bootstrap.servers": os.environ["TEST_KAFKA_BROKERS"]})
    producer.produce(bridge.place("kafka", "structured")[0], POISON)
    assert not producer.flush(30), "Kafka took the message"
    with rabbitmq() as connection:
        exchange = bridge.place("rabbitmq", "structured")
        connection.channel().basic_publish(exchange, "direct_call.dial.none", POISON)
    asyncio.run(poison_nats(bridge.place("nats", "structured")))


def finish(checks, bridge, all_nine, copies):
    """Starts each again, and waits until it has read everything. `copies` is how many events were published twice."""
    feed = bridge.feed()
    for consumer in all_nine:
        consumer.start()

    def complete(consumer):
        program = consumer.program
        assert program.process.poll() is None, f"{consumer} ended: {program.errors[-5:]}"
        return (len(consumer.done()) >= len(feed) and program.lines("set aside: ")
                and consumer.copies + len(program.lines("copy: ")) >= copies)

    faults = []
    for consumer in all_nine:
        try:
            eventually("all is read", lambda consumer=consumer: complete(consumer))
        except (TimeoutError, AssertionError) as error:
            faults.append(f"{consumer}: {error}: {len(consumer.done())} of {len(feed)}, {consumer.program.errors[-5:]}")
    checks.report("each consumer goes on after a kill, and past a message that is no envelope", faults, len(all_nine))
    faults = [f"{consumer}: expected 0, but found {code}: {consumer.program.errors[-5:]}"
              for consumer in all_nine if (code := consumer.program.stop()) != 0]
    checks.report("each consumer ends in order", faults, len(all_nine))
    judge(checks, feed, all_nine, copies)


def judge(checks, feed, all_nine, copies):
    expected = by_key(feed)
    once, order, position, again = [], [], [], []
    for consumer in all_nine:
        done = consumer.done()
        ids = [event["id"] for event in done]
        if sorted(ids) != sorted(event["id"] for event in feed):
            once.append(f"{consumer}: {len(ids)} works on {len(set(ids))} of {len(feed)} events")
        found = by_key(done)
        order += [f"{consumer}: {key}" for key, ids in expected.items() if found[key] != ids]
        again_here = consumer.copies + len(consumer.program.lines("copy: ")) - copies
        if not 1 <= again_here <= UNCOMMITTED:
            again.append(f"{consumer}: expected 1 to {UNCOMMITTED} events to come again, but found {again_here}")
        if left := LEFT[consumer.broker](consumer):
            position.append(f"{consumer}: {left}")
    checks.report("each event is worked on once", once, len(feed) * len(all_nine))
    checks.report("in order by key", order, len(expected) * len(all_nine))
    checks.report("after the kill each goes on at its committed position", again, len(all_nine))
    checks.report("nothing is left that is not committed", position, len(all_nine))
    with rabbitmq() as connection:
        dead = all_nine[3].place + ".dead"
        found = connection.channel().queue_declare(dead, passive=True).method.message_count
        faults = [] if found == len(LANGUAGES) else [f"expected {len(LANGUAGES)} messages, but found {found}"]
        checks.report("what RabbitMQ's consumers rejected is in the dead-letter queue", faults, found)


def left_in_kafka(consumer):
    """Partitions whose committed offset is not their end."""
    client = confluent_kafka.Consumer({
        "bootstrap.servers": os.environ["TEST_KAFKA_BROKERS"], "group.id": consumer.name, "enable.auto.commit": False,
    })
    left = []
    for topic in consumer.place:
        partitions = client.list_topics(topic, 30).topics[topic].partitions
        for each in client.committed([confluent_kafka.TopicPartition(topic, number) for number in partitions], 30):
            _, end = client.get_watermark_offsets(each, 30)
            if max(each.offset, 0) != end:
                left.append(f"{topic}/{each.partition}: expected {end}, but found {each.offset}")
    client.close()
    return left


def left_in_rabbitmq(consumer):
    """Messages that are still in the queue."""
    with rabbitmq() as connection:
        return connection.channel().queue_declare(consumer.name, passive=True).method.message_count


def left_in_nats(consumer):
    """Messages that are pending, or wait for an acknowledgement."""
    async def info():
        connection = await nats.connect(os.environ["TEST_NATS_URL"])
        found = await connection.jetstream().consumer_info(consumer.place, consumer.name)
        await connection.close()
        return found.num_pending + found.num_ack_pending

    return asyncio.run(info())


LEFT = {"kafka": left_in_kafka, "rabbitmq": left_in_rabbitmq, "nats": left_in_nats}
