"""Reads one topic for each codec with a Kafka client of Python, and prints what it found as JSON lines.

Owns: what `kafka-python` and `confluent-kafka` do with each codec. Promises: a line with the client's version, then a line for
each topic, with the ids of its first COUNT events or with the client's error. Leaves the judgement to checks/kafka_codecs.py.

Arguments: CLIENT BROKERS COUNT CODEC=TOPIC...; ADDED in the environment is a directory with more packages. Run it with
`python -I`: otherwise `import kafka` finds the example beside this file, and not the client.
"""
import importlib
import json
import os
import sys

client, brokers, count, *topics = sys.argv[1:]
if "ADDED" in os.environ:
    sys.path.append(os.environ["ADDED"])
LIMIT_S = 20


def kafka_python(module, topic):
    consumer = module.KafkaConsumer(
        topic, bootstrap_servers=brokers.split(","), auto_offset_reset="earliest", consumer_timeout_ms=LIMIT_S * 1000)
    try:
        return [message.value for _, message in zip(range(int(count)), consumer)]
    finally:
        consumer.close()


def confluent(module, topic):
    consumer = module.Consumer({
        "bootstrap.servers": brokers, "group.id": f"{topic}.confluent", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    values = []
    try:
        while len(values) < int(count) and (message := consumer.poll(LIMIT_S)):
            if message.error():
                raise module.KafkaException(message.error())
            values.append(message.value())
        return values
    finally:
        consumer.close()


name, read = {"kafka-python": ("kafka", kafka_python), "confluent-kafka": ("confluent_kafka", confluent)}[client]
library = importlib.import_module(name)
print(json.dumps({"version": library.__version__}))
for codec, place in (each.split("=") for each in topics):
    try:
        print(json.dumps({"codec": codec, "ids": [json.loads(value)["id"] for value in read(library, place)]}))
    except Exception as error:  # pylint: disable=broad-exception-caught
        print(json.dumps({"codec": codec, "error": str(error)}))
