"""Owns: the rows: what each of them starts, loads and counts.

Promises: a row takes down what it has set up, at the broker too; each speed stands beside that of the bare floor, measured
right before and after it with the same deliveries.
"""
import itertools
import os
import shutil
import signal
import time
from pathlib import Path

from processes import (BROKERS, TOKEN, Bridge, Server, SystemCalls, cpu_s, device_written, eventually, free_port,
                       machine_cpu_s, memory_mib, waits, written)
from simulation import compare, scenario, simulate

SIZES = (512, 4096, 16384)
CONNECTIONS = (1, 256)
RATES = (100, 1000, 5000)
GROUPS = (1, 16, 64)
# More than a server can answer, by the length of a body; so many deliveries are signed for each second.
MOST_PER_S = {512: 120_000, 1024: 120_000, 4096: 80_000, 16384: 30_000}
# Deliveries before those that count.
WARM = 2000
# The floor after one row is the floor before the next, if it is no older.
FRESH_S = 10
FORMS = ("await", "first")
# Measured in the first round alone: they take minutes.
ONCE = ("long.bare", "long.nats")
MEANING = {
    "floor": "nothing: the body was read",
    "bridge": "on the bridge's disk, synced",
    "hand": "acknowledged by the broker",
    "await": "acknowledged by the broker",
    "first": "in the memory of the process",
}


class Rows:
    """All rows, by name. `plan` is how long each kind of row takes."""

    def __init__(self, options, plan, brokers, bench):
        self.options, self.plan, self.brokers, self.bench = options, plan, brokers, bench
        self.directory = Path(options.dir)
        self.numbers = itertools.count(1)
        self.run = f"{os.getpid():x}"
        self.first = 0
        self.bare = None
        self.last_floor = None
        self.rates = {}
        self.all = {
            "floor.bare": self.floor_bare,
            "floor.two-threads": self.floor_two_threads,
            "floor.signature": lambda: self.server_row(self.serve("signature")),
        }
        for group in GROUPS:
            self.all[f"floor.fdatasync.{group}"] = lambda group=group: self.fdatasync(group)
        for broker in BROKERS:
            self.all[f"client.{broker}"] = lambda broker=broker: self.client(broker)
        for sink in (None, *BROKERS):
            self.all[f"closed.{sink or 'none'}"] = lambda sink=sink: self.closed(sink)
        for broker in BROKERS:
            self.all[f"hand.{broker}"] = lambda broker=broker: self.hand(broker)
        for broker, form in itertools.product(BROKERS, FORMS):
            self.all[f"peer.{broker}.{form}"] = lambda broker=broker, form=form: self.peer(broker, form)
        for broker in BROKERS:
            self.all[f"binary.{broker}"] = lambda broker=broker: self.closed(broker, mode="binary")
        for connections in CONNECTIONS:
            self.all[f"connections.{connections}"] = lambda count=connections: self.closed(None, connections=count)
        for size in SIZES:
            self.all[f"bytes.{size}"] = lambda size=size: self.closed(None, size=size)
        for rate in RATES:
            self.all[f"open.{rate}.bare"] = lambda rate=rate: self.open_bare(rate)
            for sink in (None, *BROKERS):
                self.all[f"open.{rate}.{sink or 'none'}"] = lambda rate=rate, sink=sink: self.open(rate, sink)
        for sink in (None, *BROKERS):
            self.all[f"calls.{sink or 'none'}"] = lambda sink=sink: self.calls(sink)
        self.all["long.bare"] = lambda: self.open_bare(5000, self.plan["long"])
        self.all["long.nats"] = lambda: self.open(5000, "nats", self.plan["long"])
        for broker in BROKERS:
            self.all[f"frozen.{broker}"] = lambda broker=broker: self.frozen(broker)
        for broker in BROKERS:
            self.all[f"loss.bridge.{broker}"] = lambda broker=broker: self.loss(broker, "bridge")
            self.all[f"loss.hand.{broker}"] = lambda broker=broker: self.loss(broker, "hand")
            for form in FORMS:
                self.all[f"loss.{form}.{broker}"] = lambda broker=broker, form=form: self.loss(broker, form)
        for broker in BROKERS:
            self.all[f"simulation.{broker}"] = lambda broker=broker: self.simulation(broker)
        self.all["pending"] = self.pending

    def measure(self, row):
        """A row, and the part of the processors that others than this run used meanwhile."""

        def used():
            """By this process, those that it has waited for, the brokers and the bare floor, which outlive a row."""
            return (sum(os.times()[:4]) + sum(map(self.brokers.cpu_s, BROKERS))
                    + (cpu_s(self.bare.pid) if self.bare else 0))

        own, (busy, whole) = used(), machine_cpu_s()
        figures = self.all[row]()
        (busy_after, whole_after), own_after = machine_cpu_s(), used()
        return {**figures, "others_share": max(0, busy_after - busy - own_after + own) / (whole_after - whole)}

    # ---- what rows are made of -------------------------------------------------------------------------------------

    def name(self):
        return f"bench-{self.run}-{next(self.numbers)}"

    def load(self, port, start=False, **options):
        """Runs a load with deliveries that no load has sent before."""
        rate = options.get("rate")
        if isinstance(rate, list):
            phases, count = rate, sum(int(rate * seconds) for seconds, rate in rate)
            options["rate"] = ",".join(f"{rate}:{seconds}" for seconds, rate in phases)
            options["seconds"] = sum(seconds for seconds, _ in phases)
        else:
            count = int(rate * options["seconds"]) if rate else options["deliveries"]
        first, self.first = self.first, self.first + count
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        run = self.bench.start if start else self.bench.run
        return run("load", f"127.0.0.1:{port}", f"--first={first}", *arguments)

    def closed_load(self, port, seconds, connections=64, size=1024, threads=1):
        return self.load(port, connections=connections, bytes=size, threads=threads, seconds=seconds,
                         deliveries=int(seconds * MOST_PER_S[size]))

    def open_load(self, port, rate, seconds, **options):
        return self.load(port, connections=256, rate=rate, seconds=seconds, **options)

    def warm(self, port, connections=64, size=1024):
        self.load(port, connections=connections, bytes=size, seconds=30, deliveries=WARM)

    def serve(self, *floor):
        return Server([self.options.bench, "serve", "--listen=127.0.0.1:{port}", *floor], self.directory / "floor.log")

    def node(self, broker, name, form):
        command = [self.options.node, self.options.handler, broker, self.brokers.addresses[broker], name, form, "{port}"]
        return Server(command, self.directory / "node.log", {"TOKEN": TOKEN, "NODE_ENV": "production"})

    def sink(self, broker, name, mode="structured"):
        if broker is None:
            return ""
        address = self.brokers.addresses[broker]
        head = f'[sinks.broker]\ntype = "{broker}"\nformat = "{mode}"\n'
        if broker == "nats":
            return head + f'''servers = ["{address}"]
stream = "{name}"
subject = "{name}.{{object}}.{{verb}}.{{key}}"
create_stream = true
'''
        if broker == "kafka":
            return head + f'''brokers = ["{address}"]
topic = "{name}"
[sinks.broker.create_topics]
partitions = 12
replication_factor = 1
'''
        return head + f'''url = "{address}"
exchange = "{name}"
[[sinks.broker.declare.queues]]
name = "{name}"
type = "classic"
'''

    def floor(self, connections=64, size=1024):
        """The bare floor with such deliveries, measured now, unless it has just been."""
        last = self.last_floor
        if last and last["for"] == (connections, size) and time.monotonic() - last["at"] < FRESH_S:
            return last
        if self.bare is None:
            self.bare = self.serve("bare")
            self.warm(self.bare.port)
        before = cpu_s(self.bare.pid)
        load = self.closed_load(self.bare.port, self.plan["floor"], connections, size)
        used = cpu_s(self.bare.pid) - before
        self.last_floor = {"for": (connections, size), "at": time.monotonic(), "cpu_us": used / load["sent"] * 1e6, **load}
        return self.last_floor

    def beside_floor(self, measure, connections=64, size=1024):
        """The figures of `measure`, and its speed as a part of the floor's before and after it."""
        before = self.floor(connections, size)
        figures = measure()
        self.last_floor = None
        after = self.floor(connections, size)
        floor = (before["per_s"] + after["per_s"]) / 2
        return {**figures, "floor_per_s": floor, "of_floor": figures["per_s"] / floor}

    def new_bridge(self, sink, what):
        directory = self.directory / what
        shutil.rmtree(directory, ignore_errors=True)
        return Bridge(self.options.bridge, directory, sink)

    def bridge_row(self, broker, mode, load, warm):
        """A bridge under a load, and until it has published all of it."""
        name = self.name()
        bridge = self.new_bridge(self.sink(broker, name, mode), "bridge")
        try:
            warm(bridge.port)
            bridge.drained()
            pid, begun = bridge.pid, time.monotonic()
            before = dict(cpu=cpu_s(pid), written=written(pid), waits=waits(pid), published=bridge.published(),
                          broker=self.brokers.cpu_s(broker) if broker else None, device=device_written(self.directory))
            load_begun = time.monotonic()
            figures = load(bridge)
            loaded_s = time.monotonic() - load_begun - figures["prepared_in_s"]
            published, left = bridge.published() - before["published"], bridge.pending()
            bridge.drained()
            # What is in memory of the state is committed every 100 ms.
            time.sleep(0.3)
            seconds, stored = time.monotonic() - begun - figures["prepared_in_s"], max(1, figures["ok"])
            after = waits(pid)
            envelopes = stored * bridge.envelope_bytes()
            device = device_written(self.directory)
            figures |= {
                "cpu_us": (cpu_s(pid) - before["cpu"]) / stored * 1e6,
                "waits": sum(max(0, count - before["waits"].get(task, 0)) for task, count in after.items()) / stored,
                "written_per_byte": (written(pid) - before["written"]) / envelopes,
                "device_per_byte": (device - before["device"]) / envelopes if device is not None else None,
                "envelope_bytes": envelopes / stored,
                "memory_mib": memory_mib(pid),
                "refused": figures["sent"] - figures["ok"],
            }
            if broker:
                figures |= {
                    "published_per_s": published / loaded_s,
                    "published_to_the_end_per_s": stored / (seconds - 0.3),
                    "left": left,
                    "copies": self.check_arrived(broker, name, figures),
                    "broker_cpu_us": (self.brokers.cpu_s(broker) - before["broker"]) / stored * 1e6,
                }
            return figures
        finally:
            bridge.stop()
            if broker:
                self.bench.delete(broker, name)
            shutil.rmtree(bridge.directory, ignore_errors=True)

    def check_arrived(self, broker, name, figures):
        """That the broker holds no fewer messages than were answered with 200, and those that warmed up."""
        messages, answered = self.bench.count(broker, name), figures["ok"] + WARM
        if messages < answered:
            raise RuntimeError(f"expected {answered} messages at the broker, but found {messages}")
        return messages - answered

    def server_row(self, server, broker=None, name=None, awaits=True):
        """The figures of a server without a journal, in closed loop."""

        def measure():
            self.warm(server.port)
            pid = server.pid
            before = dict(cpu=cpu_s(pid), waits=waits(pid), broker=self.brokers.cpu_s(broker) if broker else None)
            figures = self.closed_load(server.port, self.plan["closed"])
            answered = max(1, figures["ok"])
            after = waits(pid)
            figures |= {
                "cpu_us": (cpu_s(pid) - before["cpu"]) / answered * 1e6,
                "waits": sum(max(0, count - before["waits"].get(task, 0)) for task, count in after.items()) / answered,
                "memory_mib": memory_mib(pid),
                "refused": figures["sent"] - figures["ok"],
            }
            if broker:
                figures["broker_cpu_us"] = (self.brokers.cpu_s(broker) - before["broker"]) / answered * 1e6
                if awaits:
                    self.check_arrived(broker, name, figures)
            return figures

        try:
            return self.beside_floor(measure)
        finally:
            server.kill()
            if broker:
                self.bench.delete(broker, name)

    # ---- floors ----------------------------------------------------------------------------------------------------

    def floor_bare(self):
        self.last_floor = None
        return self.floor()

    def floor_two_threads(self):
        """The bare floor under a load generator with twice the threads: what it answers then is what one thread kept back."""

        def measure():
            before = cpu_s(self.bare.pid)
            figures = self.closed_load(self.bare.port, self.plan["floor"], threads=2)
            return {**figures, "cpu_us": (cpu_s(self.bare.pid) - before) / figures["sent"] * 1e6}

        return self.beside_floor(measure)

    def fdatasync(self, group):
        return self.bench.run("fdatasync", self.directory, f"--group={group}", f"--seconds={self.plan['floor']}")

    def client(self, broker):
        """The client by itself, with messages as long as the bridge's."""
        name = self.name()
        self.bench.create(broker, name)
        try:
            size, seconds = self.envelope_bytes(), self.plan["closed"]
            publish = ["publish", *self.bench.destination(broker, name), f"--bytes={size}"]
            # A broker that has just started is slower. Other numbers, because JetStream drops what it has seen.
            self.bench.run(*publish, f"--seconds={seconds / 2}")
            before = self.brokers.cpu_s(broker)
            figures = self.bench.run(*publish, f"--seconds={seconds}", "--first=100000000")
            figures["broker_cpu_us"] = (self.brokers.cpu_s(broker) - before) / figures["published"] * 1e6
            self.rates[broker] = figures["per_s"]
            return figures
        finally:
            self.bench.delete(broker, name)

    def client_rate(self, broker):
        """What the client alone publishes in a second, measured in this round, or now."""
        if broker not in self.rates:
            self.client(broker)
        return self.rates[broker]

    def envelope_bytes(self):
        """How long the bridge's events are, asked of it once."""
        if "envelope" not in self.rates:
            bridge = self.new_bridge("", "envelope")
            self.warm(bridge.port)
            self.rates["envelope"] = round(bridge.envelope_bytes())
            bridge.stop()
            shutil.rmtree(bridge.directory)
        return self.rates["envelope"]

    def hand(self, broker):
        name = self.name()
        self.bench.create(broker, name)
        return self.server_row(self.serve("publish", *self.bench.destination(broker, name)), broker, name)

    # ---- the bridge ------------------------------------------------------------------------------------------------

    def closed(self, broker, mode="structured", connections=64, size=1024):
        def measure():
            return self.bridge_row(broker, mode,
                                   lambda bridge: self.closed_load(bridge.port, self.plan["closed"], connections, size),
                                   lambda port: self.warm(port, connections, size))

        return self.beside_floor(measure, connections, size)

    def open(self, rate, broker, seconds=None):
        seconds = seconds or self.plan["open"]
        return self.bridge_row(broker, "structured", lambda bridge: self.open_load(bridge.port, rate, seconds), self.warm)

    def calls(self, broker):
        """What a delivery costs in system calls, and what the bridge calls when nothing arrives."""
        report = self.directory / "strace"

        def load(bridge):
            with SystemCalls(bridge.pid, report) as idle:
                time.sleep(5)
            idle_calls = idle.counts()["calls"]
            with SystemCalls(bridge.pid, report) as busy:
                figures = self.open_load(bridge.port, 100, self.plan["open"])
            per_delivery = {name: count / max(1, figures["ok"]) for name, count in busy.counts().items()}
            return {**figures, **per_delivery, "idle_calls_per_s": idle_calls / 5}

        figures = self.bridge_row(broker, "structured", load, self.warm)
        # Under strace the rest says nothing.
        kept = (*SystemCalls.GROUPS, "idle_calls_per_s", "sent", "ok", "refused")
        return {name: figures[name] for name in kept}

    def open_bare(self, rate, seconds=None):
        self.floor()
        before = cpu_s(self.bare.pid)
        figures = self.open_load(self.bare.port, rate, seconds or self.plan["open"])
        return {**figures, "cpu_us": (cpu_s(self.bare.pid) - before) / figures["sent"] * 1e6,
                "refused": figures["sent"] - figures["ok"]}

    def frozen(self, broker):
        """Deliveries while the broker stands still, and how fast they are published afterwards, beside more deliveries."""
        name = self.name()
        bridge = self.new_bridge(self.sink(broker, name), "bridge")
        try:
            self.warm(bridge.port)
            bridge.drained()
            with self.brokers.paused(broker):
                figures = self.open_load(bridge.port, 3000, self.plan["frozen"])
            backlog, before, begun = bridge.pending(), bridge.published(), time.monotonic()
            beside = self.load(bridge.port, start=True, connections=64, rate=1000, seconds=self.plan["open"])
            # Until the connection is back, nothing moves; that is not the speed of catching up.
            eventually("the broker is published to", lambda: bridge.published() > before, 120)
            moving, from_then = time.monotonic(), bridge.published()
            eventually("the backlog is published", lambda: bridge.published() >= before + backlog, 600)
            done, published = time.monotonic(), bridge.published()
            beside = beside.finish()
            bridge.drained()
            rate = (published - from_then) / max(done - moving, 1e-3)
            raw = self.client_rate(broker)
            return {**figures, "backlog": backlog, "first_after_s": moving - begun, "caught_up_after_s": done - begun,
                    "catch_up_per_s": rate, "of_client": rate / raw, "memory_mib": memory_mib(bridge.pid),
                    "p99_ms_beside": beside["p99_ms"],
                    "refused": figures["sent"] - figures["ok"] + beside["sent"] - beside["ok"]}
        finally:
            bridge.stop()
            self.bench.delete(broker, name)
            shutil.rmtree(bridge.directory, ignore_errors=True)

    def simulation(self, broker):
        """What the simulation says of a burst after an outage, and what came of it.

        It is told two figures that are measured first: what the bridge answers while nothing is published, and what it
        publishes while nothing arrives.
        """
        name = self.name()
        bridge = self.new_bridge(self.sink(broker, name), "bridge")
        try:
            self.warm(bridge.port)
            bridge.drained()
            with self.brokers.paused(broker):
                answers = self.closed_load(bridge.port, self.plan["floor"])["per_s"]
            before, begun = bridge.published(), time.monotonic()
            eventually("the broker is published to", lambda: bridge.published() > before, 120)
            from_then, moving = bridge.published(), time.monotonic()
            bridge.drained()
            publishes = (bridge.published() - from_then) / (time.monotonic() - moving)
            plan = scenario(answers, publishes, self.plan["simulation"])
            predicted = simulate(plan, answers, publishes)
            load = self.load(bridge.port, start=True, connections=256, rate=plan.phases)
            load.begun()
            measured, paused, begun = [], False, time.monotonic()
            try:
                while (now := time.monotonic() - begun) < plan.seconds:
                    if paused != plan.is_out(now):
                        (self.brokers.resume if paused else self.brokers.pause)(broker)
                        paused = not paused
                    measured.append((time.monotonic() - begun, *bridge.backlog()))
                    time.sleep(0.05)
            finally:
                if paused:
                    self.brokers.resume(broker)
            figures = load.finish()
            bridge.drained()
            return {"answers_per_s": answers, "publishes_per_s": publishes, **compare(predicted, measured),
                    "copies": self.bench.count(broker, name) - bridge.published(),
                    "refused": figures["sent"] - figures["ok"]}
        finally:
            bridge.stop()
            self.bench.delete(broker, name)
            shutil.rmtree(bridge.directory, ignore_errors=True)

    def pending(self):
        """A backlog for a broker that is down, kill -9, the start, and the catch-up at a broker that is there."""
        dead = f'[sinks.broker]\ntype = "nats"\nservers = ["nats://127.0.0.1:{free_port()}"]\nstream = "none"\n'
        bridge, name, made = self.new_bridge(dead, "bridge"), self.name(), False
        try:
            events, sent, begun, costs = self.plan["pending"], 0, time.monotonic(), []
            while sent < events:
                before = cpu_s(bridge.pid)
                piece = self.load(bridge.port, connections=64, seconds=300, deliveries=min(events // 10, events - sent))
                if piece["ok"] != piece["sent"]:
                    raise RuntimeError(f"expected 200 alone, but found {piece['statuses']}")
                sent += piece["ok"]
                costs.append((cpu_s(bridge.pid) - before) / piece["ok"] * 1e6)
            filling_s, pending = time.monotonic() - begun, bridge.pending()
            figures = {"pending": pending, "filled_per_s": sent / filling_s,
                       "first_tenth_cpu_us": costs[0], "last_tenth_cpu_us": costs[-1], "memory_mib": memory_mib(bridge.pid),
                       "memory_after_mib": memory_mib(bridge.pid, "VmRSS"), "disk_mib": disk_mib(bridge.directory)}
            bridge.kill()
            bridge.start()
            figures |= {"ready_ms": bridge.ready_s * 1000, "start_cpu_ms": cpu_s(bridge.pid) * 1000}
            time.sleep(1)
            figures |= {"pending_after": bridge.pending(), "memory_started_mib": memory_mib(bridge.pid)}
            bridge.kill()
            # The same sink, at a broker that is there.
            bridge.configure(self.sink("nats", name))
            bridge.start()
            eventually("the broker is published to", lambda: bridge.published() > 0, 120)
            made = True
            before, begun, published = cpu_s(bridge.pid), time.monotonic(), bridge.published()
            broker = self.brokers.cpu_s("nats")
            beside = self.load(bridge.port, start=True, connections=64, rate=1000, seconds=self.plan["open"])
            eventually("the backlog is published", lambda: bridge.published() >= pending, 1200, pause_s=0.1)
            took, done = time.monotonic() - begun, bridge.published() - published
            figures |= {"catch_up_per_s": done / took, "cpu_us": (cpu_s(bridge.pid) - before) / done * 1e6,
                        "broker_cpu_us": (self.brokers.cpu_s("nats") - broker) / done * 1e6,
                        "memory_catching_up_mib": memory_mib(bridge.pid), "p99_ms_beside": beside.finish()["p99_ms"]}
            # The broker's files have a limit, which a backlog and all that the client publishes would exceed.
            self.bench.delete("nats", name)
            made = False
            return figures | {"of_client": done / took / self.client_rate("nats")}
        finally:
            bridge.kill()
            if made:
                self.bench.delete("nats", name)
            shutil.rmtree(bridge.directory, ignore_errors=True)

    # ---- what people would use instead -----------------------------------------------------------------------------

    def peer(self, broker, form):
        name = self.name()
        self.bench.create(broker, name)
        return self.server_row(self.node(broker, name, form), broker, name, form == "await") | {"meaning": MEANING[form]}

    def loss(self, broker, kind):
        """What a 2xx was worth: the broker stands still, then the process is killed, then the broker goes on."""
        name, answered = self.name(), self.directory / "answered"
        if kind == "bridge":
            server = self.new_bridge(self.sink(broker, name), "bridge")
        else:
            self.bench.create(broker, name)
            server = (self.serve("publish", *self.bench.destination(broker, name)) if kind == "hand"
                      else self.node(broker, name, kind))
        try:
            self.warm(server.port)
            load = self.load(server.port, start=True, connections=256, rate=1000, seconds=30, drain_timeout=1,
                             answered=answered)
            time.sleep(2)
            with self.brokers.paused(broker):
                time.sleep(2)
                server.stop(signal.SIGKILL)
                figures = load.finish()
            if kind == "bridge":
                server.start()
                server.drained()
            else:
                # What the broker had received before the kill.
                time.sleep(2)
            counted = self.bench.run("destination", "read", *self.bench.destination(broker, name), answered)
            return {"meaning": MEANING[kind], "answered": counted["answered"], "arrived": counted["arrived"],
                    "messages": counted["messages"], "missing": counted["missing"], "unanswered": figures["broken"]}
        finally:
            server.kill()
            self.bench.delete(broker, name)
            if kind == "bridge":
                shutil.rmtree(server.directory, ignore_errors=True)
            answered.unlink(missing_ok=True)


def disk_mib(directory):
    files = (Path(root) / name for root, _, names in os.walk(directory) for name in names)
    return sum(file.stat().st_blocks * 512 for file in files) / 2**20
