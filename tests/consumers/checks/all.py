"""Owns: the order of the checks. Run by tests/consumers/check, which brings the programs and the clients.

Promises: one line for each check ("ok", or "FAILED" with the faults below it); exit status 1 if one failed.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import consumers
import documents
import interop
import kafka_codecs
import recipes
from support import Bridge, Checks, Program

# What may not stand in a subject, a routing key or a header as it is.
ODD_ROOM = 'pä.iva/%41 "*" >#'
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def send_odd(bridge, scratch):
    """A room with an odd name, whose deliveries carry a trace."""
    body = {
        "application_id": "0A1B2C3D-1111-4222-8333-444455556666",
        "room": {"room_id": ODD_ROOM, "room_type": "small_room_for_video", "state": "open", "created_by": "René"},
    }
    for number, verb in enumerate(("create", "delete")):
        path = Path(scratch) / f"{verb}.json"
        text = json.dumps({"category": f"room:{verb}", "occurred_at": int(time.time() * 1000) + number, **body})
        path.write_text(text, encoding="utf-8")
        bridge.send("--file", path, "--header", f"traceparent:{TRACE}")


def check_brokers(checks):
    """The consumers and the SDKs, on the messages of one bridge."""
    bridge = Bridge(checks.options)
    all_nine = consumers.start_first(checks.options, bridge)
    bridge.send("--all", "--count", "120", "--concurrency", "4", "--calls", "8")
    send_odd(bridge, checks.options.scratch)
    bridge.published()
    copies = bridge.replay("--type", "direct_call:dial") + bridge.replay("--key", ODD_ROOM)
    interop.check(checks, bridge, copies)
    consumers.crash(checks, all_nine)
    consumers.poison(bridge)
    bridge.send("--all", "--count", "120", "--concurrency", "4", "--calls", "8")
    bridge.published()
    consumers.finish(checks, bridge, all_nine, copies)
    bridge.process.stop()


def main():
    parser = argparse.ArgumentParser()
    for name in ("bridge", "node", "go", "java", "java-path", "kafka-python-codecs", "scratch"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    options.python = sys.executable
    checks = Checks(options)
    started = time.monotonic()
    try:
        documents.check(checks)
        recipes.check(checks)
        kafka_codecs.check(checks)
        check_brokers(checks)
    except (AssertionError, TimeoutError) as error:
        checks.report("the checks come to their end", [str(error)], 1)
    finally:
        Program.end_all()
    print(f"{checks.count - checks.failed} passed, {checks.failed} failed ({time.monotonic() - started:.0f} s)")
    return int(checks.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
