"""Reads the events from RabbitMQ: works on each once, in order by key, and acknowledges after the work."""
import os
import signal
import sys

import pika

from work import Work, read

work = Work(os.environ["WORK_FILE"])
exchange, queue = os.environ["RABBITMQ_EXCHANGE"], os.environ["RABBITMQ_QUEUE"]
connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"]))
channel = connection.channel()
channel.exchange_declare(exchange, "topic", durable=True)
# Of all its consumers only one is given messages, another when that one goes: two at once would break the order.
# What is rejected goes to the dead-letter exchange.
channel.queue_declare(queue, durable=True, arguments={
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-dead-letter-exchange": f"{exchange}.dead",
})
channel.queue_bind(queue, exchange, "#")
channel.basic_qos(prefetch_count=20)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))

# Never put a single message back into the queue: others of its key may be on their way. An error ends the program, the
# broker takes back what was not acknowledged, in its old order, and the next start goes on.
for method, _, body in channel.consume(queue, inactivity_timeout=0.5):
    if stopping:
        break
    if method is None:
        continue
    event = read(body)
    if event is None:
        print(f"set aside: {method.routing_key}", file=sys.stderr)
        channel.basic_reject(method.delivery_tag, requeue=False)
        continue
    if not work.once(event):
        print("copy:", event["id"], file=sys.stderr)
    channel.basic_ack(method.delivery_tag)
connection.close()
