"""Reads the events from Kafka: works on each once, in order by key, and commits after the work."""
import os
import signal
import sys

from confluent_kafka import Consumer, KafkaException

from work import Work, read

work = Work(os.environ["WORK_FILE"])
consumer = Consumer({
    "bootstrap.servers": os.environ["KAFKA_BROKERS"],
    "group.id": os.environ["KAFKA_GROUP"],
    # A name of its own, different for each process of the group: started again, it has its partitions back at once.
    "group.instance.id": os.environ["KAFKA_MEMBER"],
    "partition.assignment.strategy": "cooperative-sticky",
    "auto.offset.reset": "earliest",  # a new group begins with the oldest event
    "enable.auto.commit": False,
})
consumer.subscribe(os.environ["KAFKA_TOPICS"].split(","))
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))

try:
    while not stopping:
        messages = consumer.consume(20, timeout=0.5)
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            event = read(message.value())
            if event is None:
                print(f"set aside: {message.topic()}/{message.partition()}@{message.offset()}", file=sys.stderr)
            elif not work.once(event):
                print("copy:", event["id"], file=sys.stderr)
        if messages:
            consumer.commit(asynchronous=False)  # all of them are worked on
finally:
    consumer.close()
