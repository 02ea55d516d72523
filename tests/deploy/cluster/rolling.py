"""Owns: the checks of what rollouts cost the senders. The negative control is three replicas with `preStopSeconds: 0`."""

import time

from failing import Replicas, only

MOST_SILENCE = 6


def a_rollout_of_one(world):
    """One replica: for how long a rollout leaves deliveries without an answer, and what three tries lose."""
    return measured(world, "one", 1)


def a_rollout_of_two(world):
    """Two replicas: no first try is lost in a rollout, on new connections and on those that are kept."""
    return measured(world, "two", 2)


def a_rollout_of_three(world):
    """Three replicas: the same."""
    return measured(world, "three", 3)


def a_rollout_without_prestop(world):
    """The negative control: with preStopSeconds 0 first tries are lost, so the checks above can fail."""
    with Replicas(world, "control", 3, {"preStopSeconds": 0}) as release:
        with release.load("control", rate=150) as load:
            for _ in range(3):
                roll(release)
        world.expect_true("first tries are lost without a preStop", load.failed() > 0)
        return load.figures()


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
    """A rollout under both kinds of senders."""
    with Replicas(world, f"roll-{name}", replicas) as release:
        with release.watch() as watch:
            # One replica is away for some seconds, so there what counts is what three tries lose, as Sendbird makes them.
            tries = 1 if replicas > 1 else 3
            new, kept = f"roll-{name}-new", f"roll-{name}-kept"
            senders = (release.load(new, 100, tries), release.load(kept, 50, tries, keep=True))
            with senders[0] as first, senders[1] as second:
                time.sleep(2)
                took = roll(release)
                time.sleep(2)
        for tag, load in ((new, first), (kept, second)):
            if replicas > 1:
                world.expect(f"{tag}: first tries", {"200": load.sent()}, load.report["first"])
            only(world, tag, load)
        # Its volume is that of one pod at a time, so a new pod begins when the old one is gone.
        silence = max(first.report["silence"], second.report["silence"])
        world.expect_at_most("seconds without an answer 200", MOST_SILENCE if replicas == 1 else 1, silence)
        if replicas > 1:
            world.expect("seconds without a pod in the Service", 0, watch.without())
        figures = f"new connections: {first.figures()}; kept: {second.figures()}"
        return f"{took:.1f} s, nothing answered for {silence} s; {figures}"


CHECKS = [a_rollout_of_one, a_rollout_of_two, a_rollout_of_three, a_rollout_without_prestop, ten_rollouts]
SHORT = [a_rollout_of_two]
