"""Owns: which checks there are, in which order they run, and what they have found. Run by tests/deploy/cluster/check, which
brings the tools.

Promises: one line for each check, with what it has measured ("ok", or "FAILED" with the faults below it); exit status 1 if one
failed. Nothing of the cluster is left, however this program ends.
"""

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

import autoscaling
import failing
import installing
import kubernetes
import monitoring
import node
import operating
import policies
import rolling
from brokers import Brokers
from release import Unexpected

EVERY = [
    *installing.CHECKS, *operating.CHECKS, *failing.CHECKS, *policies.CHECKS, *autoscaling.CHECKS, *monitoring.CHECKS,
    *rolling.CHECKS,
]  # fmt: skip
# What a normal run has the time for.
SHORT = [*installing.SHORT, *operating.SHORT, *failing.SHORT, *rolling.SHORT]


class World:
    """What a check is given."""

    def __init__(self, cluster, brokers, addons):
        self.cluster = cluster
        self.brokers = brokers
        self.addons = addons
        self.faults = []

    def expect(self, what, expected, found):
        """Notes a fault if it was found otherwise."""
        if found != expected:
            self.faults.append(f"{what}: expected {expected}, but found {found}")

    def expect_at_most(self, what, most, found):
        """Notes a fault if there was more."""
        if found > most:
            self.faults.append(f"{what}: expected at most {most}, but found {found:.1f}")

    def expect_true(self, what, holds):
        """Notes a fault if it does not hold."""
        if not holds:
            self.faults.append(f"expected that {what}")


def run(check, world):
    """Runs a check; whether it passed."""
    world.faults, seen, begun = [], "", time.monotonic()
    try:
        seen = check(world)
    except (Unexpected, TimeoutError, RuntimeError) as error:
        world.faults.append(str(error))
    except Exception:
        world.faults.append(traceback.format_exc())
    took = f"{time.monotonic() - begun:.0f} s"
    print(f"{'FAILED ' if world.faults else 'ok     '} {check.__doc__.splitlines()[0].rstrip('.')}: {seen} ({took})")
    for fault in world.faults:
        print("\n".join(f"        {line}" for line in str(fault).splitlines()))
    sys.stdout.flush()
    return not world.faults


def main():
    parser = argparse.ArgumentParser()
    for name in ("--programs", "--rootfs", "--scratch", "--clients"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--addons", type=Path, help="not needed by the short form")
    parser.add_argument("--helm", required=True)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("names", nargs="*", help="checks to run; all unless named")
    options = parser.parse_args()
    # An end by a signal is an end as any other, with what has to be removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    checks = [check for check in (SHORT if options.short else EVERY) if options.names in ([], [check.__name__])]
    if options.names:
        checks = [check for check in EVERY if check.__name__ in options.names]
    if not checks or len(checks) < len(options.names):
        sys.exit(f"expected names of checks, but found {options.names}; there are: {' '.join(each.__name__ for each in EVERY)}")
    node.sweep()
    here = node.Node(options.scratch, options.programs)
    begun = time.monotonic()
    try:
        here.start()
        cluster = kubernetes.Cluster(here, options.helm)
        cluster.start(options.rootfs)
        version = cluster.get("/version")["gitVersion"]
        print(f"the cluster is up after {time.monotonic() - begun:.1f} s: Kubernetes {version}")
        sys.stdout.flush()
        world = World(cluster, Brokers(cluster, options.clients), options.addons)
        passed = [run(check, world) for check in checks]
    finally:
        begun = time.monotonic()
        here.end()
        print(f"the cluster is gone after {time.monotonic() - begun:.1f} s")
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
