"""Owns: what the checks share: the report, a bridge with six sinks unless a check names others, and programs that are
started and ended.

Promises: waits for conditions, each with a limit that is named when it is reached; ends every process that it started.
"""
import json
import os
import re
import secrets
import signal
import subprocess
import threading
import time
import urllib.request
from collections import defaultdict
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
TOKEN = "check-token"
BROKERS = ("kafka", "rabbitmq", "nats")
MODES = ("structured", "binary")
LANGUAGES = ("python", "javascript", "go")


class Checks:
    """The report: a line for each check, and the faults below it. A check that looked at nothing fails."""

    def __init__(self, options):
        self.options = options
        self.count = self.failed = 0

    def report(self, name, faults, looked_at):
        self.count += 1
        if not looked_at:
            faults = [*faults, "expected something to look at, but found nothing"]
        self.failed += bool(faults)
        print(f"{'FAILED' if faults else 'ok    '}  {name} ({looked_at})", flush=True)
        for fault in faults[:10]:
            print(f"          {fault[:500]}", flush=True)
        if len(faults) > 10:
            print(f"          and {len(faults) - 10} more", flush=True)


def eventually(what, condition, limit_s=60):
    """The condition's answer, once it is true."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected within {limit_s} s that {what}, but it did not come to that")
        time.sleep(0.05)


class Program:
    """A process whose standard error is read as it comes."""

    started = []

    def __init__(self, command, environment=None, **more):
        environment = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **more)
        self.errors = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        Program.started.append(self)

    def read(self):
        for line in self.process.stderr:
            self.errors.append(line.rstrip("\n"))

    def lines(self, start):
        """What follows `start` on the lines that begin with it."""
        return [line.removeprefix(start) for line in list(self.errors) if line.startswith(start)]

    def wait(self, limit_s=60):
        """Its exit status, or none if it had to be killed, because it did not end."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self.reader.join(limit_s)
        return code

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    @classmethod
    def end_all(cls):
        for program in cls.started:
            if program.process.poll() is None:
                program.process.kill()
                program.wait()


class Bridge:
    """A bridge with one sink for each broker and content mode, under names that no other run uses."""

    name = "bridge"

    def __init__(self, options):
        self.program = options.bridge
        self.run = f"check-{secrets.token_hex(6)}"
        self.config = Path(options.scratch) / f"{self.name}.toml"
        lines = [
            "[server]", 'listen = "127.0.0.1:0"', "[admin]", 'listen = "127.0.0.1:0"',
            "[access]", f'api_tokens = ["{TOKEN}"]', "[journal]", f'dir = "{options.scratch}/{self.name}-journal"',
        ]
        self.config.write_text("\n".join(lines + self.sinks()) + "\n", encoding="utf-8")
        self.process = Program([self.program, "--config", self.config, "--log-format", "json", "serve"])
        lines = eventually("the bridge listens", self.listening)
        self.webhook, self.admin = lines["webhook"], re.match(r"https?://[^/]+", lines["admin"])[0]

    def listening(self):
        assert self.process.process.poll() is None, self.process.errors
        lines = [json.loads(line) for line in list(self.process.errors) if line.startswith("{")]
        return next((line for line in lines if line.get("message") == "listening"), None)

    def place(self, broker, mode):
        """The exchange or the stream; for Kafka the two topics."""
        if broker == "kafka":
            return [f"{self.run}.{mode}.direct_call", f"{self.run}.{mode}.room"]
        return f"{self.run}-{mode}"

    def sinks(self):
        """The lines of the configuration that name them."""
        lines = []
        for mode in MODES:
            queues = ", ".join(f'{{ name = "{self.place("rabbitmq", mode)}-{each}", type = "classic" }}' for each in LANGUAGES)
            stream = self.place("nats", mode)
            lines += [
                f"[sinks.kafka_{mode}]", 'type = "kafka"', f'format = "{mode}"',
                f'brokers = ["{os.environ["TEST_KAFKA_BROKERS"]}"]', f'topic = "{self.run}.{mode}.{{object}}"',
                "create_topics = { partitions = 3, replication_factor = 1 }",
                f"[sinks.rabbitmq_{mode}]", 'type = "rabbitmq"', f'format = "{mode}"',
                f'url = "{os.environ["TEST_RABBITMQ_URL"]}"', f'exchange = "{self.place("rabbitmq", mode)}"',
                f"declare = {{ queues = [{queues}] }}",
                f"[sinks.nats_{mode}]", 'type = "nats"', f'format = "{mode}"',
                f'servers = ["{os.environ["TEST_NATS_URL"]}"]', f'stream = "{stream}"',
                f'subject = "{stream}.{{object}}.{{verb}}.{{key}}"',
                # The least that the server allows, so that copies come through.
                'create_stream = { storage = "memory", duplicate_window = "100ms" }',
            ]
        return lines

    def command(self, *arguments):
        command = [self.program, "--config", self.config, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def send(self, *arguments):
        self.command("send", "--url", self.webhook, "--token", TOKEN, *arguments)

    def replay(self, *which):
        """Publishes events again, to each sink; says how many."""
        # JetStream forgets an id only some time after its window.
        newest = datetime.fromisoformat(self.feed()[-1]["receivedtime"].replace("Z", "+00:00")).timestamp()
        eventually("the streams have forgotten the ids", lambda: time.time() > newest + 1)
        counts = set()
        for sink in self.status()["sinks"]:
            counts.add(int(self.command("replay", "--sink", sink["name"], *which).split()[0]))
        self.published()
        [count] = counts
        return count

    def get(self, path):
        with urllib.request.urlopen(self.admin + path, timeout=30) as answer:
            return answer.read().decode()

    def status(self):
        return json.loads(self.get("/status"))

    def published(self):
        """Waits until each broker has acknowledged everything."""
        def idle():
            sinks = self.status()["sinks"]
            return all(not sink["pending_records"] and not sink["resends_pending"] for sink in sinks)

        eventually("all is published", idle)
        letters = {sink["name"]: sink["dead_letters"] for sink in self.status()["sinks"] if sink["dead_letters"]}
        assert not letters, f"expected no dead letters, but found {letters}"

    def feed(self):
        """All envelopes, in the order in which they were accepted."""
        lines = self.get("/events?follow=false").splitlines()
        return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def by_key(events):
    """The ids of each key, in order."""
    keys = defaultdict(list)
    for event in events:
        keys[event["partitionkey"]].append(event["id"])
    return keys

