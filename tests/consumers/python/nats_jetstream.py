"""Reads the events from NATS JetStream: works on each once, in order, and acknowledges after the work."""
import asyncio
import os
import signal
import sys

import nats
from nats.errors import TimeoutError
from nats.js.api import ConsumerConfig

from work import Work, read


async def main():
    work = Work(os.environ["WORK_FILE"])
    connection = await nats.connect(os.environ["NATS_URL"])
    subscription = await connection.jetstream().pull_subscribe(
        os.environ.get("NATS_FILTER", ">"),
        durable=os.environ["NATS_CONSUMER"],
        stream=os.environ["NATS_STREAM"],
        config=ConsumerConfig(
            # One at a time: otherwise, after a crash, later events come before those that were not acknowledged.
            max_ack_pending=1,
            ack_wait=float(os.environ.get("NATS_ACK_WAIT", 30)),  # seconds; longer than the work takes
        ),
    )
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    while not stopping.is_set():
        try:
            [message] = await subscription.fetch(1, timeout=0.5)
        except TimeoutError:
            continue
        event = read(message.data)
        if event is None:
            print(f"set aside: {message.subject}", file=sys.stderr)
            await message.term()  # is not delivered again, and stays in the stream
            continue
        if not work.once(event):
            print("copy:", event["id"], file=sys.stderr)
        await message.ack_sync()
    await connection.close()


asyncio.run(main())
