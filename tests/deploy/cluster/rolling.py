"""Owns: the checks of what rollouts cost the senders, each with its negative control."""

import json
import statistics
import time

from failing import Replicas, only
from gap import SILENCE, Gap

MOST_SILENCE = 6
ROUNDS = 3
LIFECYCLE = "/spec/template/spec/containers/0/lifecycle"


def a_rollout_of_one(world):
    """One replica: for how long a rollout leaves deliveries without an answer, and what three tries lose."""
    waiting, before = replaced(world, "one-before", before=True)
    without, after = replaced(world, "one")
    # Five seconds less, but for what the machine's other work adds to one and not to the other.
    world.expect_at_most("seconds without a pod in the Service; 4 fewer than with a preStop", waiting - 4, without)
    return f"{after}. With a preStop, as several replicas have it: {before}"


def a_rollout_of_two(world):
    """Two replicas: no first try is lost in a rollout, on new connections and on those that are kept."""
    return measured(world, "two", 2)


def a_rollout_of_three(world):
    """Three replicas: the same."""
    return measured(world, "three", 3)


def a_rollout_without_prestop(world):
    """The negative control: with preStopSeconds 0 first tries are lost, so the checks above can fail."""
    seen = []
    for replicas in (2, 3):
        with Replicas(world, f"control-{replicas}", replicas, {"preStopSeconds": 0}) as release:
            with release.load(f"control-{replicas}", rate=150) as load:
                for _ in range(3):
                    roll(release)
            world.expect_true(f"first tries of {replicas} replicas are lost without a preStop", load.failed() > 0)
            seen.append(f"{replicas} replicas: {load.figures()}")
    return "; ".join(seen)


def ten_rollouts(world):
    """Ten rollouts of two replicas: 0 of 50,000 first tries are lost."""
    with Replicas(world, "ten", 2) as release:
        with release.load("ten-new", rate=130) as new, release.load("ten-kept", rate=60, keep=True) as kept:
            begun = time.monotonic()
            for _ in range(10):
                roll(release)
            # As many as the promise names.
            time.sleep(max(0, 50_000 / 190 + 2 - (time.monotonic() - begun)))
        for tag, load in (("ten-new", new), ("ten-kept", kept)):
            world.expect(f"{tag}: first tries", {"200": load.sent()}, load.report["first"])
            only(world, tag, load)
        world.expect_true(f"there were 50,000, but found {new.sent() + kept.sent()}", new.sent() + kept.sent() >= 50_000)
        return f"new connections: {new.figures()}; kept: {kept.figures()}"


def roll(release):
    """A rollout as README has it; how long it took."""
    begun = time.monotonic()
    release.kubectl("rollout", "restart", f"statefulset/{release.full}")
    release.await_rollout(180)
    return time.monotonic() - begun


def measured(world, name, replicas):
    """A rollout of several replicas under both kinds of senders."""
    with Replicas(world, f"roll-{name}", replicas) as release:
        new, kept = f"roll-{name}-new", f"roll-{name}-kept"
        with release.watch() as watch:
            senders = (release.load(new, 100), release.load(kept, 50, keep=True))
            with senders[0] as first, senders[1] as second:
                time.sleep(2)
                took = roll(release)
                time.sleep(2)
        for tag, load in ((new, first), (kept, second)):
            world.expect(f"{tag}: first tries", {"200": load.sent()}, load.report["first"])
            only(world, tag, load)
        silence = max(first.report["silence"], second.report["silence"])
        world.expect_at_most("seconds without an answer 200", 1, silence)
        world.expect("seconds without a pod in the Service", 0, watch.without())
        return f"{took:.1f} s, nothing answered for {silence} s; new connections: {first.figures()}; kept: {second.figures()}"


def replaced(world, name, before=False):
    """Rollouts of one replica under both kinds of senders: the median of the seconds without a pod in the Service, and a line of all
    that was seen. `before`: with the preStop that several replicas have.
    """
    with Replicas(world, f"roll-{name}", 1) as release:
        if before:
            wait = [{"op": "add", "path": LIFECYCLE, "value": {"preStop": {"sleep": {"seconds": 5}}}}]
            release.kubectl("patch", "statefulset", release.full, "--type=json", "--patch", json.dumps(wait))
            release.await_rollout()
        new, kept = f"roll-{name}-new", f"roll-{name}-kept"
        # One replica is away for some seconds, so what counts is what three tries lose, as Sendbird makes them.
        senders = (release.load(new, 100, 3), release.load(kept, 50, 3, keep=True))
        gaps, without = [], []
        with senders[0] as first, senders[1] as second:
            for _ in range(ROUNDS):
                time.sleep(3)
                with release.watch() as watch, Gap(release) as gap:
                    roll(release)
                    time.sleep(3)
                gaps.append(gap)
                without.append(watch.without())
        for tag, load in ((new, first), (kept, second)):
            only(world, tag, load)
        rounds = [gap.parts(first.report["silences"]) for gap in gaps]
        parts = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
        world.expect_at_most("seconds without an answer 200", MOST_SILENCE, parts[SILENCE])
        shown = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items())
        outcome = f"new connections: {first.figures()}; kept: {second.figures()}"
        median = statistics.median(without)
        return median, f"no pod in the Service for {median:.1f} s; {shown} (medians of {ROUNDS}); {outcome}"


CHECKS = [a_rollout_of_one, a_rollout_of_two, a_rollout_of_three, a_rollout_without_prestop, ten_rollouts]
SHORT = [a_rollout_of_two]
