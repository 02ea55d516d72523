"""Owns: what must hold when the bridge's messages are read with other people's SDKs of CloudEvents.

Promises: each event comes through each SDK, from each broker, in both content modes, with the attributes and the data that
the feed has.
"""
import json
import os
from collections import Counter
from datetime import datetime
from pathlib import Path

from support import BROKERS, HERE, LANGUAGES, MODES, Program


def plan(bridge, count):
    return json.dumps({"count": count, **{
        broker: {mode: bridge.place(broker, mode) for mode in MODES} for broker in BROKERS
    }})


def read(checks, bridge, count):
    """What each SDK makes of the first `count` messages."""
    options = checks.options
    commands = {
        "python": [options.python, HERE / "python" / "interop.py"],
        "javascript": [options.node, Path(options.scratch) / "interop.mjs"],
        "go": [Path(options.go) / "interop"],
    }
    environment = {
        "INTEROP": plan(bridge, count), "NATS_URL": os.environ["TEST_NATS_URL"],
        "KAFKA_BROKERS": os.environ["TEST_KAFKA_BROKERS"], "RABBITMQ_URL": os.environ["TEST_RABBITMQ_URL"],
    }
    programs = {}
    for language, command in commands.items():
        out = open(Path(options.scratch) / f"interop-{language}.jsonl", "w+", encoding="utf-8")
        programs[language] = Program(command, environment, stdout=out), out
    messages, faults = {}, []
    for language, (program, out) in programs.items():
        code = program.wait(120)
        if code != 0:
            faults.append(f"the reader in {language} ended with {code}: {program.errors[-10:]}")
        out.seek(0)
        messages[language] = [json.loads(line) for line in out]
        out.close()
    checks.report("the readers of CloudEvents read and end", faults, len(programs))
    return messages


def same(event):
    """An event in the form that is compared: SDKs have their own way to write a time."""
    event = dict(event)
    event["time"] = datetime.fromisoformat(event["time"].replace("Z", "+00:00"))
    if "replayed" in event:
        # A boolean, which is a text where attributes are headers.
        event["replayed"] = str(event["replayed"]).lower()
    return event


def check(checks, bridge, copies):
    """`copies` is how many events were published twice; all is published."""
    feed = {event["id"]: same(event) for event in bridge.feed()}
    messages = read(checks, bridge, len(feed) + copies)
    for language in LANGUAGES:
        for broker in BROKERS:
            for mode in MODES:
                found = [same(each["event"]) for each in messages[language] if (each["broker"], each["mode"]) == (broker, mode)]
                name = f"CloudEvents SDK, {language}: {broker}, {mode}"
                checks.report(name, compare(feed, found, copies), len(found))
    traced = sum("traceparent" in event for event in feed.values())
    faults = [] if traced else ["expected an event with a traceparent, but found none"]
    checks.report("among them are events with a trace", faults, traced)


def compare(feed, found, copies):
    faults = []
    times = Counter(event["id"] for event in found)
    if set(times) != set(feed) or sum(times.values()) != len(feed) + copies:
        faults.append(f"expected {len(feed)} events and {copies} copies, but found {len(times)} in {len(found)} messages")
    if (replays := sum(event.get("replayed") == "true" for event in found)) != copies:
        faults.append(f"expected {copies} replays, but found {replays}")
    for event in found:
        expected = {**feed.get(event["id"], {}), **({"replayed": "true"} if "replayed" in event else {})}
        for name in sorted(expected.keys() | event.keys()):
            if expected.get(name) != event.get(name):
                faults.append(f"{name}: expected {expected.get(name)!r}, but found {event.get(name)!r}")
    return faults
