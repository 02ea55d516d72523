"""Owns: the document that a run writes: tables of medians with their spread, the machine, the versions, the command.

Promises: nothing of the machine's paths or addresses is in it. What was measured stands beside it, figure by figure, in JSON.
"""
import json
import os
import platform
import re
import statistics
from pathlib import Path

NAMES = {"none": "no sink", "nats": "JetStream", "kafka": "Kafka", "rabbitmq": "RabbitMQ", "bare": "bare warp"}
FORMS = {"await": "broker first", "first": "answer first"}
STEPS = ("signature", "redact", "parse", "identity", "normalize", "encode", "view", "structured message", "binary message")


def number(value):
    if value < 1000 and value == int(value):
        return f"{value:.0f}"
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Report:
    """The measurements of a run, by row."""

    def __init__(self, measured, steps, machine):
        self.measured, self.steps, self.machine = measured, steps, machine

    def values(self, row, figure):
        return [figures[figure] for figures in self.measured.get(row, []) if figures.get(figure) is not None]

    def cell(self, row, figure):
        """The median, and in brackets the least and the most."""
        values = self.values(row, figure)
        if not values:
            return "–"
        if isinstance(values[0], str):
            return values[0]
        text = number(statistics.median(values))
        return text if len(values) == 1 else f"{text} ({number(min(values))}–{number(max(values))})"

    def table(self, title, columns, rows):
        """`columns` are heads and figures, `rows` names and heads; rows that were not measured are left out."""
        rows = [(row, name) for row, name in rows if row in self.measured]
        if not rows:
            return ""
        lines = [("", *(head for head, _ in columns)), ("---",) * (len(columns) + 1)]
        lines += [(name, *(self.cell(row, figure) for _, figure in columns)) for row, name in rows]
        return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"

    def markdown(self):
        machine = self.machine
        text = "# Benchmarks\n\nWritten by `tests/bench/run`; do not edit. "
        text += "[benchmarks.json](benchmarks.json) has each measurement.\n\n"
        text += f"`{machine['command']}`: {machine['rounds']} round(s), {machine['date']}, commit {machine['commit']}.\n\n"
        text += "".join(f"- **{name}**: {machine[name]}\n" for name in ("machine", "disk", "versions", "brokers"))
        lengths = self.values("closed.none", "envelope_bytes") + self.values("closed.nats", "envelope_bytes")
        envelope = f", of {lengths[0]:,.0f} bytes for such a delivery," if lengths else ""
        text += f"""
A figure is the median of the rounds; in brackets are the least and the most. Load, server and broker share the processors of the
machine, so ratios tell more than speeds. *Of bare warp* compares with a warp server that reads the body and answers 200, measured
right before and after with the same deliveries. A delivery is a signed `direct_call:end` of 1,024 bytes over one of 64
keep-alive connections, unless the row says otherwise. Every answer was checked; *refused* counts those that were not 200.
The bridge runs with its defaults: each 200 follows an fsync. It publishes its envelope{envelope} and so do
the clients alone; the handlers without a journal publish the body as it came.

"""
        shares = [figures["others_share"] * 100 for rounds in self.measured.values() for figures in rounds if "others_share" in figures]
        if shares:
            text += f"""Other processes and the kernel's own threads used {statistics.median(shares):.0f} % of the processors meanwhile (median of the
{len(shares)} measurements that counted it; {max(shares):.0f} % at most).

"""
        quick = {row.split(".")[0]: None for row, rounds in self.measured.items() if any(figures["quick"] for figures in rounds)}
        if quick:
            text += f"Short loads (`--quick`), whose figures say less, in the rows {', '.join(f'`{name}`' for name in quick)}.\n\n"
        text += self.goals()
        for part in (self.closed, self.open, self.calls, self.variants, self.outage, self.simulations, self.peers, self.losses, self.floors):
            text += part()
        return text + self.step_table()

    def pairs(self, row, figure, of, of_figure, join):
        """`join` of two figures of the same round."""
        def run(figures):
            return figures["round"], figures["quick"]

        others = {run(figures): figures[of_figure] for figures in self.measured.get(of, [])}
        return [join(figures[figure], others[run(figures)]) for figures in self.measured.get(row, []) if run(figures) in others]

    def goals(self):
        """What is aimed at, beside what was measured."""
        ratio, less = (lambda one, other: one / other), (lambda one, other: one - other)
        lines = []

        def goal(name, values, sign, bound):
            if values:
                middle = statistics.median(values)
                met = middle >= bound if sign == "≥" else middle <= bound
                spread = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
                lines.append(f"| {name} | {number(middle)}{spread} | {sign} {number(bound)} | {'yes' if met else 'no'} |\n")

        brokers = ("nats", "kafka", "rabbitmq")
        goal("answers without a sink, of bare warp", self.values("closed.none", "of_floor"), "≥", 0.55)
        for broker in brokers:
            goal(f"answers with {NAMES[broker]}, of bare warp", self.values(f"closed.{broker}", "of_floor"), "≥", 0.30)
        for broker in ("nats", "kafka"):
            goal(f"{NAMES[broker]}: published meanwhile, of stored",
                 self.pairs(f"closed.{broker}", "published_per_s", f"closed.{broker}", "per_s", ratio), "≥", 0.95)
        goal("RabbitMQ: published, of warp by hand that awaits each confirmation",
             self.pairs("closed.rabbitmq", "published_to_the_end_per_s", "hand.rabbitmq", "per_s", ratio), "≥", 1)
        goal("RabbitMQ: the broker's CPU µs an event", self.values("closed.rabbitmq", "broker_cpu_us"), "≤", 90)
        for broker, bound in (("nats", 45), ("kafka", 45), ("rabbitmq", 55)):
            goal(f"CPU µs an event, received to published, {NAMES[broker]}", self.values(f"closed.{broker}", "cpu_us"), "≤", bound)
        for broker in brokers:
            goal(f"catching up beside 1,000/s, of the client alone, {NAMES[broker]}",
                 self.values(f"frozen.{broker}", "of_client"), "≥", 0.8)
        filled = max(self.values("pending", "pending"), default=0)
        if filled >= 1_000_000:
            goal("memory with a million pending and a million ids, MiB", self.values("pending", "memory_mib"), "≤", 100)
        for sink in brokers:
            goal(f"memory at 5,000/s, {NAMES[sink]}, MiB", self.values(f"open.5000.{sink}", "memory_mib"), "≤", 64)
        goal("bytes written for a byte stored, no sink", self.values("closed.none", "written_per_byte"), "≤", 2.5)
        for broker in brokers:
            goal(f"bytes written for a byte stored, {NAMES[broker]}", self.values(f"closed.{broker}", "written_per_byte"), "≤", 2.5)
        for sink in ("none", *brokers):
            goal(f"writes to files and eventfds for a delivery at 100/s, {NAMES[sink]}", self.values(f"calls.{sink}", "write_calls"), "≤", 7.5)
            goal(f"file locks for a delivery at 100/s, {NAMES[sink]}", self.values(f"calls.{sink}", "lock_calls"), "≤", 3)
        for rate, bounds in ((1000, (175, 327, 305)), (5000, (75, 90, 102))):
            for sink, bound in zip(("none", "nats", "kafka"), bounds):
                goal(f"CPU µs an event at {rate:,}/s, {NAMES[sink]}", self.values(f"open.{rate}.{sink}", "cpu_us"), "≤", bound)
        for sink in brokers:
            goal(f"p99.9 at 5,000/s above bare warp's, {NAMES[sink]}, ms",
                 self.pairs(f"open.5000.{sink}", "p999_ms", "open.5000.bare", "p999_ms", less), "≤", 5)
        goal("the latest of five minutes of 5,000/s, JetStream, ms", self.values("long.nats", "max_ms"), "≤", 100)
        goal(f"CPU for a delivery behind a backlog of {filled * 9 // 10:,}, of that behind none",
             self.pairs("pending", "last_tenth_cpu_us", "pending", "first_tenth_cpu_us", ratio), "≤", 1.2)
        for broker in brokers:
            goal(f"deliveries a CPU second, of Node's that awaits the broker, {NAMES[broker]}",
                 self.pairs(f"peer.{broker}.await", "cpu_us", f"closed.{broker}", "cpu_us", ratio), "≥", 4)
        if not lines:
            return ""
        return "## Goals\n\n| | measured | goal | met |\n|---|---|---|---|\n" + "".join(lines) + "\n"

    def calls(self):
        columns = (("all", "calls"), ("write", "write_calls"), ("fdatasync", "sync_calls"), ("file locks", "lock_calls"),
                   ("send, receive", "socket_calls"), ("futex", "futex_calls"), ("epoll", "epoll_calls"),
                   ("all, a second, when nothing arrives", "idle_calls_per_s"))
        rows = [(f"calls.{sink}", NAMES[sink]) for sink in ("none", "nats", "kafka", "rabbitmq")]
        return self.table("System calls for a delivery at 100/s (strace)", columns, rows)

    def simulations(self):
        columns = (("answers/s, nothing published", "answers_per_s"), ("publishes/s, nothing arriving", "publishes_per_s"),
                   ("largest backlog", "backlog"), ("predicted", "predicted_backlog"), ("greatest delay, s", "delay_s"),
                   ("predicted", "predicted_delay_s"), ("backlog gone after, s", "gone_after_s"),
                   ("predicted", "predicted_gone_after_s"), ("off at most", "off"))
        rows = [(f"simulation.{broker}", NAMES[broker]) for broker in ("nats", "kafka", "rabbitmq")]
        return self.table("An outage and a burst, as simulated and as they were", columns, rows)

    def closed(self):
        rows = [("floor.bare", "bare warp"), ("floor.signature", "bare warp, signature checked")]
        rows += [(f"closed.{sink}", f"bridge, {NAMES[sink]}") for sink in ("none", "nats", "kafka", "rabbitmq")]
        rows += [(f"hand.{broker}", f"warp by hand, {NAMES[broker]} first") for broker in ("nats", "kafka", "rabbitmq")]
        columns = (("deliveries/s", "per_s"), ("of bare warp", "of_floor"), ("CPU µs an event", "cpu_us"),
                   ("its broker's", "broker_cpu_us"), ("published/s meanwhile", "published_per_s"),
                   ("published/s to the end", "published_to_the_end_per_s"), ("left at the end", "left"),
                   ("p50, ms", "p50_ms"), ("p99, ms", "p99_ms"), ("p99.9, ms", "p999_ms"),
                   ("written for a byte stored", "written_per_byte"), ("at the device", "device_per_byte"),
                   ("waits a delivery", "waits"), ("memory at most, MiB", "memory_mib"), ("refused", "refused"),
                   ("load's CPU share", "load_cpu_share"))
        return self.table("Closed loop", columns, rows)

    def open(self):
        rows = [(f"open.{rate}.{sink}", f"{rate:,}/s, {NAMES[sink]}") for rate in (100, 1000, 5000)
                for sink in ("bare", "none", "nats", "kafka", "rabbitmq")]
        rows += [("long.bare", "5,000/s for five minutes, bare warp"), ("long.nats", "5,000/s for five minutes, JetStream")]
        columns = (("p50, ms", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p999_ms"), ("max", "max_ms"),
                   ("later than 1 s", "late"), ("CPU µs an event", "cpu_us"), ("its broker's", "broker_cpu_us"),
                   ("waits a delivery", "waits"), ("written for a byte stored", "written_per_byte"), ("memory at most, MiB", "memory_mib"),
                   ("refused", "refused"))
        return self.table("Open loop: from when a delivery was due to its answer", columns, rows)

    def variants(self):
        rows = [("closed.none", "no sink, 1,024 bytes, 64 connections")]
        rows += [(f"connections.{count}", f"{count} connection{'s'[:count > 1]}") for count in (1, 256)]
        rows += [(f"bytes.{size}", f"{size:,} bytes") for size in (512, 4096, 16384)]
        for broker in ("nats", "kafka", "rabbitmq"):
            rows += [(f"closed.{broker}", f"{NAMES[broker]}, structured"), (f"binary.{broker}", f"{NAMES[broker]}, binary")]
        columns = (("deliveries/s", "per_s"), ("of bare warp", "of_floor"), ("CPU µs an event", "cpu_us"),
                   ("its broker's", "broker_cpu_us"), ("published/s meanwhile", "published_per_s"), ("p99, ms", "p99_ms"),
                   ("written for a byte stored", "written_per_byte"), ("memory at most, MiB", "memory_mib"),
                   ("refused", "refused"))
        return self.table("Connections, sizes, content modes", columns, rows)

    def outage(self):
        columns = (("late", "late"), ("p99.9, ms", "p999_ms"), ("backlog", "backlog"), ("first after, s", "first_after_s"),
                   ("caught up after, s", "caught_up_after_s"), ("catch-up/s", "catch_up_per_s"),
                   ("of the client", "of_client"),
                   ("p99 beside, ms", "p99_ms_beside"), ("memory at most, MiB", "memory_mib"), ("refused", "refused"))
        rows = [(f"frozen.{broker}", NAMES[broker]) for broker in ("nats", "kafka", "rabbitmq")]
        text = self.table("A broker stands still (SIGSTOP) under 3,000/s, then goes on", columns, rows)
        columns = (("pending", "pending"), ("filled/s", "filled_per_s"), ("memory while filling, MiB", "memory_mib"),
                   ("on the disk, MiB", "disk_mib"), ("ready after `kill -9`, ms", "ready_ms"),
                   ("CPU µs for the first tenth", "first_tenth_cpu_us"), ("for the last", "last_tenth_cpu_us"),
                   ("memory then, MiB", "memory_started_mib"), ("catch-up/s", "catch_up_per_s"),
                   ("of the client", "of_client"), ("CPU µs an event", "cpu_us"), ("its broker's", "broker_cpu_us"),
                   ("memory while catching up, MiB", "memory_catching_up_mib"), ("p99 beside, ms", "p99_ms_beside"))
        return text + self.table("A backlog for a broker that is down", columns, [("pending", "JetStream")])

    def peers(self):
        for row, meaning in (("floor.bare", "nothing: the body was read"), ("closed.{}", "on the bridge's disk, synced"),
                             ("hand.{}", "acknowledged by the broker")):
            for broker in ("nats", "kafka", "rabbitmq"):
                for figures in self.measured.get(row.format(broker), []):
                    figures["meaning"] = meaning
        sources = {"bridge": "closed.{}", "hand": "hand.{}", "await": "peer.{}.await", "first": "peer.{}.first"}
        for kind, row in sources.items():
            for broker in ("nats", "kafka", "rabbitmq"):
                speeds = self.measured.get(row.format(broker), [])
                for figures, loss in zip(speeds, self.measured.get(f"loss.{kind}.{broker}", [])):
                    figures |= {"of_those": loss["answered"], "missing": loss["missing"]}
                for figures in speeds:
                    figures["per_cpu_s"] = 1e6 / figures["cpu_us"]
        rows = [("floor.bare", "bare warp")]
        for broker in ("nats", "kafka", "rabbitmq"):
            rows += [(f"closed.{broker}", f"bridge, {NAMES[broker]}")]
            rows += [(f"hand.{broker}", f"warp by hand, {NAMES[broker]}")]
            rows += [(f"peer.{broker}.{form}", f"Node (Fastify), {NAMES[broker]}, {FORMS[form]}") for form in FORMS]
        columns = (("what a 2xx meant", "meaning"), ("answered 2xx before a kill", "of_those"), ("of those, missing", "missing"),
                   ("deliveries/s", "per_s"), ("of bare warp", "of_floor"), ("CPU µs a delivery", "cpu_us"),
                   ("deliveries a CPU second", "per_cpu_s"), ("its broker's CPU µs", "broker_cpu_us"), ("p99, ms", "p99_ms"),
                   ("memory at most, MiB", "memory_mib"), ("refused", "refused"))
        text = self.table("What people would use instead", columns, rows)
        note = """*Missing*: 1,000 deliveries a second; after 2 s the broker is stopped (SIGSTOP), after 4 s the process is killed
(`kill -9`), then the broker goes on, and the bridge is started again. Each delivery that had been answered 2xx was looked for
at the broker. What a power cut of the bridge's machine leaves is shown by `tests/it/recovery/power_cuts.rs`; what one leaves of a broker's
messages is not measured here.

"""
        return text and text + note

    def losses(self):
        """Where only the losses were measured, a table of their own."""
        if any(row.startswith("peer.") for row in self.measured):
            return ""
        kinds = {"bridge": "bridge", "hand": "warp by hand", "await": "Node, broker first", "first": "Node, answer first"}
        rows = [(f"loss.{kind}.{broker}", f"{name}, {NAMES[broker]}") for broker in ("nats", "kafka", "rabbitmq")
                for kind, name in kinds.items()]
        columns = (("what a 2xx meant", "meaning"), ("answered 2xx before a kill", "answered"), ("of those, missing", "missing"),
                   ("messages at the broker", "messages"))
        return self.table("Killed while the broker stood still", columns, rows)

    def floors(self):
        columns = (("published/s", "per_s"), ("bytes", "bytes"), ("in flight", "in_flight"),
                   ("its broker's CPU µs", "broker_cpu_us"))
        rows = [(f"client.{broker}", f"{NAMES[broker]}'s client alone") for broker in ("nats", "kafka", "rabbitmq")]
        text = self.table("The clients by themselves, as plainly as they can be used", columns, rows)
        columns = (("records/s", "per_s"), ("syncs/s", "syncs_per_s"), ("p50, ms", "p50_ms"), ("p99, ms", "p99_ms"),
                   ("max, ms", "max_ms"))
        rows = [(f"floor.fdatasync.{group}", f"{group} KiB appended, then fdatasync") for group in (1, 16, 64)]
        text += self.table("The disk", columns, rows)
        columns = (("deliveries/s", "per_s"), ("of one thread", "of_floor"), ("CPU share of each thread", "load_cpu_share"),
                   ("its CPU µs a delivery", "load_cpu_us"), ("the server's", "cpu_us"))
        rows = [("floor.bare", "one thread, as everywhere"), ("floor.two-threads", "two threads")]
        return text + self.table("Whether the load generator is the limit", columns, rows)

    def step_table(self):
        if not self.steps:
            return ""
        lines = ["## The steps by themselves", "", "One `direct_call:end` of 1,024 bytes, by Criterion (`benches/event.rs`).", "",
                 "| step | µs | 95 % of the means |", "|---|---|---|"]
        for step in STEPS:
            if step in self.steps:
                point, low, high = (value / 1000 for value in self.steps[step])
                lines.append(f"| {step} | {point:.2f} | {low:.2f}–{high:.2f} |")
        return "\n".join(lines) + "\n"


def criterion(directory):
    """What Criterion has estimated for each step: nanoseconds, and the bounds of the interval."""
    steps = {}
    for step in STEPS:
        path = Path(directory) / "event" / step / "new" / "estimates.json"
        if path.exists():
            mean = json.loads(path.read_text())["mean"]
            interval = mean["confidence_interval"]
            steps[step] = (mean["point_estimate"], interval["lower_bound"], interval["upper_bound"])
    return steps


def machine(directory):
    """What the figures depend on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = int(re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)[1]) / 2**20
    return {
        "machine": f"{os.cpu_count()} processors ({model[1] if model else platform.machine()}), {memory:.0f} GiB, "
                   f"Linux {platform.release()}",
        "disk": f"{filesystem(directory)} for the journal and the brokers",
    }


def filesystem(directory):
    """The type of the file system of this directory: that of the longest mount point above it."""
    directory, found = os.path.realpath(directory), ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if len(mount) > len(found[0]) and f"{directory}/".startswith(f"{mount.rstrip('/')}/"):
            found = (mount, kind)
    return found[1]
