"""Owns: the order of the measurements. Run by tests/bench/run, which builds the programs and starts the brokers.

Promises: in each round every row once, in the same order; a row that fails is named and does not stop the others; exit status 1
if one failed. Prints the document, and writes it where it is told to.
"""
import argparse
import json
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from processes import Bench, Brokers, Process
from report import Report, criterion, machine
from rows import ONCE, Rows

# Seconds of each kind of row, and the events of the backlog.
PLAN = {"floor": 3, "closed": 8, "open": 10, "frozen": 20, "long": 300, "simulation": 4, "pending": 1_000_000}
QUICK = {"floor": 1, "closed": 2, "open": 3, "frozen": 5, "long": 5, "simulation": 2, "pending": 100_000}


def parse():
    parser = argparse.ArgumentParser()
    for name in ("bridge", "bench", "node", "handler", "brokers", "brokers-dir", "dir", "command"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--criterion")
    parser.add_argument("--version", action="append", default=[])
    parser.add_argument("--broker-version", action="append", default=[])
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--out")
    return parser.parse_args()


def main():
    options = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    brokers = Brokers(options.brokers, options.brokers_dir)
    rows = Rows(options, QUICK if options.quick else PLAN, brokers, Bench(options.bench, brokers))
    wanted = [row for row in rows.all if re.search(options.rows, row)]
    out = Path(options.out) if options.out else None
    measured, failed = {}, []
    about = machine(options.dir) | {
        "command": options.command, "rounds": options.rounds, "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": options.commit, "versions": ", ".join(options.version), "brokers": ", ".join(options.broker_version),
    }
    steps = criterion(options.criterion) if options.criterion else {}
    if options.add and (out / "benchmarks.json").exists():
        before = json.loads((out / "benchmarks.json").read_text())
        if differing := [name for name in ("machine", "disk", "commit", "versions", "brokers") if before["about"][name] != about[name]]:
            sys.exit(f"expected figures of the same program and machine to add to, but found another: {', '.join(differing)}")
        measured = {row: figures for row, figures in before["rows"].items() if row not in wanted}
        steps = steps or before["steps_ns"]
        about["command"] = f"{before['about']['command']}`, then `{options.command}"
    try:
        for count in range(1, options.rounds + 1):
            for row in (row for row in wanted if count == 1 or row not in ONCE):
                begun = time.monotonic()
                try:
                    figures = rows.measure(row)
                except (OSError, RuntimeError, LookupError, ValueError, ArithmeticError, subprocess.SubprocessError) as error:
                    traceback.print_exc()
                    failed.append(f"round {count}, {row}: {error!r}"[:500])
                    continue
                measured.setdefault(row, []).append({"round": count, "quick": options.quick, **figures})
                print(f"round {count}, {row}, {time.monotonic() - begun:.0f} s: {brief(figures)}", file=sys.stderr, flush=True)
    finally:
        Process.stop_all()
    measured = {row: measured[row] for row in rows.all if row in measured}
    raw = lines_of(about, steps, measured)
    document = Report(measured, steps, about).markdown()
    print(document)
    if out:
        (out / "benchmarks.md").write_text(document.rstrip("\n") + "\n")
        (out / "benchmarks.json").write_text(raw)
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    sys.exit(bool(failed))


def lines_of(about, steps, measured):
    """The raw figures as JSON, each measurement on a line of its own."""
    rows = ",\n".join(f'  {json.dumps(row)}: [\n   ' + ",\n   ".join(map(json.dumps, rounded(figures))) + "]"
                      for row, figures in measured.items())
    return f'{{\n "about": {json.dumps(about, indent=2)},\n "steps_ns": {json.dumps(steps)},\n "rows": {{\n{rows}\n }}\n}}\n'


def rounded(rounds):
    """Six digits are more than any figure is good for."""
    return [{name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in figures.items()}
            for figures in rounds]


def brief(figures):
    known = ("per_s", "of_floor", "cpu_us", "broker_cpu_us", "published_per_s", "p50_ms", "p99_ms", "p999_ms", "max_ms",
             "late", "refused", "catch_up_per_s", "of_client", "ready_ms", "memory_mib", "syncs_per_s", "answered", "missing", "calls", "off")
    return ", ".join(f"{name} {figures[name]:.4g}" for name in known if figures.get(name) is not None)


if __name__ == "__main__":
    main()
