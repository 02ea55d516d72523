"""Owns: what is in a broker, read by the clients that tests/consumers names. Usage: read.py kafka|rabbitmq|nats ADDRESS

Promises: prints the calls (call_id) of which there are events, each with how many, as JSON; changes nothing in the broker.
"""

import asyncio
import collections
import json
import sys
import uuid


async def read_nats(address):
    """All messages of the stream."""
    import nats

    client = await nats.connect(address)
    stream = client.jetstream()
    left = (await stream.stream_info("SENDBIRD_CALLS")).state.messages
    if left:
        subscription = await stream.subscribe("sendbird.calls.>", stream="SENDBIRD_CALLS", ordered_consumer=True)
        for _ in range(left):
            yield (await subscription.next_msg(timeout=10)).data
    await client.close()


async def read_kafka(address):
    """All records of the bridge's topics."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": address, "group.id": str(uuid.uuid4()), "enable.auto.commit": False})
    topics = consumer.list_topics(timeout=20).topics
    for name, topic in topics.items():
        for partition in topic.partitions if name.startswith("sendbird.calls.") else []:
            _, end = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=20)
            consumer.assign([TopicPartition(name, partition, 0)])
            at = 0
            while at < end:
                messages = consumer.consume(1000, timeout=10)
                if not messages:
                    sys.exit(f"{name}/{partition}: expected records up to {end}, but found none after {at}")
                for message in messages:
                    at = message.offset() + 1
                    yield message.value()
    consumer.close()


async def read_rabbitmq(address):
    """All messages of the queue, which get them back when the connection ends."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(address))
    channel = connection.channel()
    while (found := channel.basic_get("calls"))[0]:
        yield found[2]
    connection.close()


async def main():
    calls = collections.Counter()
    async for data in globals()[f"read_{sys.argv[1]}"](sys.argv[2]):
        calls[json.loads(data)["subject"].rpartition("/")[2]] += 1
    print(json.dumps(calls))


asyncio.run(main())
