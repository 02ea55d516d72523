"""Owns: what must hold for the table of Kafka clients and codecs in docs/consumers.md.

Promises: each cell is what the client made of a topic that a sink with that codec wrote: "works" if it read each event, else
the client's own error. A row that says otherwise, or is not there, is a fault.
"""
import json
import os
from pathlib import Path

from documents import DOCUMENT
from support import HERE, Bridge, Program

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
HEAD = f"| client | {' | '.join(f'`{codec}`' for codec in CODECS)} |"


class CodecsBridge(Bridge):
    """A bridge with one sink for each codec."""

    name = "codecs"

    def topic(self, codec):
        return f"{self.run}.{codec}"

    def sinks(self):
        lines = []
        for codec in CODECS:
            lines += [
                f"[sinks.{codec}]", 'type = "kafka"', f'brokers = ["{os.environ["TEST_KAFKA_BROKERS"]}"]',
                f'topic = "{self.topic(codec)}"', "create_topics = { partitions = 1, replication_factor = 1 }",
            ]
            if codec != "none":  # the default
                lines.append(f'client."compression.type" = "{codec}"')
        return lines


def start(options, bridge, count):
    """The readers: for each row of the table its first cell, where {} is the client's version, and the program."""
    python = [options.python, "-I", HERE / "python" / "kafka_codecs.py"]
    node = [options.node, Path(options.scratch) / "kafka_codecs.mjs"]
    java = [options.java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", options.java_path, "KafkaCodecs"]
    rows = {
        "JavaScript `kafkajs` {}": ([*node, "kafkajs"], {}),
        "JavaScript `kafkajs` {}, codecs added (1)": ([*node, "kafkajs"], {"ADDED": "./kafkajs_codecs.mjs"}),
        "JavaScript `@platformatic/kafka` {}": ([*node, "@platformatic/kafka"], {}),
        "Python `kafka-python` {}": ([*python, "kafka-python"], {}),
        "Python `kafka-python` {}, codecs added (2)": ([*python, "kafka-python"], {"ADDED": options.kafka_python_codecs}),
        "Python `confluent-kafka` {}": ([*python, "confluent-kafka"], {}),
        "Go `franz-go` {}": ([Path(options.go) / "kafka_codecs"], {}),
        "Java `kafka-clients` {}": (java, {}),
    }
    arguments = [os.environ["TEST_KAFKA_BROKERS"], str(count), *(f"{codec}={bridge.topic(codec)}" for codec in CODECS)]
    started = {}
    for number, (row, (command, environment)) in enumerate(rows.items()):
        out = open(Path(options.scratch) / f"codecs-{number}.jsonl", "w+", encoding="utf-8")
        started[row] = Program([*command, *arguments], environment, stdout=out), out
    return started


def read(program, out):
    """The client's version, and for each codec what it printed."""
    code = program.wait(120)
    out.seek(0)
    version, *lines = [json.loads(line) for line in out] or [{}]
    out.close()
    nothing = {"error": f"no answer; the reader ended with {code}: {program.errors[-5:]}"}
    return version.get("version"), {codec: nothing for codec in CODECS} | {line["codec"]: line for line in lines}


def cell(found, ids):
    """What the table says of it."""
    if "error" in found:
        return f"`{' '.join(found['error'].split())}`"
    read_ids = sorted(map(str, found.get("ids", [])))
    return "works" if read_ids == ids else f"{len(set(read_ids) & set(ids))} of {len(ids)} events"


def check(checks):
    bridge = CodecsBridge(checks.options)
    bridge.send("--all", "--count", "40", "--concurrency", "4", "--calls", "4")
    bridge.published()
    ids = sorted(event["id"] for event in bridge.feed())
    rows, batches = [], {}
    for row, (program, out) in start(checks.options, bridge, len(ids)).items():
        version, found = read(program, out)
        rows.append(f"| {row.format(version)} | {' | '.join(cell(found[codec], ids) for codec in CODECS)} |")
        if "franz-go" in row:
            batches = {codec: set(found[codec].get("batches", [])) for codec in CODECS}
    bridge.process.stop()
    faults = [f"{codec}: expected batches of this codec, but found {found}"
              for codec, found in batches.items() if found != {codec}]
    checks.report("Kafka: each sink's batches have the codec that is configured", faults, len(ids))
    faults = compare(rows, DOCUMENT.read_text(encoding="utf-8").splitlines())
    checks.report("Kafka: each client reads the codecs that docs/consumers.md says", faults, len(rows) * len(CODECS))


def compare(rows, document):
    """Both ways: a row that is missing, and one that nothing was found for."""
    if HEAD not in document:
        return [f"expected a table with the head {HEAD}"]
    shown = []
    for line in document[document.index(HEAD) + 2:]:
        if not line.startswith("|"):
            break
        shown.append(line)
    faults = [f"expected the row {row}" for row in rows if row not in shown]
    return faults + [f"the document has {row}" for row in shown if row not in rows]
