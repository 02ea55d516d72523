"""Owns: the checks of what happens to pods: deleted, killed, frozen, evicted, drained, scaled, and their volumes full."""

import time

import brokers
import kubernetes
from release import Release, merged

NATS = {"config": {"sinks": {"nats": brokers.SINKS["nats"]}}}
LITTLE = {"max_bytes": "60MiB", "retain_bytes": "16MiB"}
FIRST = {"metadata": {"uid": ""}}
ZONE = "topology.kubernetes.io/zone"
LOADED_SECONDS = 45
STILL_SECONDS = 6
# The goals of docs/reliability.md.
OUT_OF_SERVICE_SECONDS = 5
REPLACED_SECONDS = 45


class Replicas(Release):
    """A release with a stream of its own."""

    def __init__(self, world, namespace, replicas, values=None):
        super().__init__(world.cluster, namespace, merged({**NATS, "replicas": replicas}, values or {}))
        world.brokers.start("nats")
        self.install()


def only(world, tag, load, once=True):
    """Each call of this sender that was answered 200 is in the stream; once, unless a process was killed."""
    until = time.monotonic() + 30
    stored = set(load.report["stored"])
    while True:
        calls = {call: count for call, count in world.brokers.events("nats").items() if call.startswith(f"{tag}-")}
        if stored <= calls.keys() or time.monotonic() > until:
            break
        time.sleep(0.5)
    world.expect(f"{tag}: calls that were answered 200 and are not in the stream", [], sorted(stored - calls.keys())[:5])
    if once:
        world.expect(f"{tag}: calls that are there twice", [], [call for call, count in calls.items() if count > 1][:5])


def a_deleted_pod(world):
    """A pod is deleted while the broker is frozen: nothing that was answered 200 is lost, readiness does not change."""
    with Replicas(world, "deleted", 1) as release:
        world.brokers.do("pause", "nats")
        try:
            with release.load("deleted", rate=100) as load:
                time.sleep(3)
            world.expect("first tries", {"200": load.sent()}, load.report["first"])
            world.expect("Ready pods while the broker is frozen", 1, release.ready())
            begun = time.monotonic()
            first = release.found()["metadata"]["uid"]
            release.kubectl("delete", "pod", release.pod())
            gone = time.monotonic() - begun
            world.cluster.await_true("another pod", lambda: (release.found() or FIRST)["metadata"]["uid"] not in ("", first))
            release.await_ready(1)
            again = time.monotonic() - begun
        finally:
            world.brokers.do("resume", "nats")
        only(world, "deleted", load)
        return f"{load.sent()} events, gone after {gone:.1f} s, Ready after {again:.1f} s"


def a_killed_process(world):
    """The process of one of three pods is killed under load: it is Ready soon, and what was answered 200 is published."""
    with Replicas(world, "killed", 3) as release:
        with release.watch() as watch, release.load("killed", rate=100, tries=3) as load:
            time.sleep(3)
            killed = time.monotonic()
            release.signal("KILL", 1)
            watch.await_change(killed, lambda ready: release.pod(1) not in ready)
            out = watch.changes[-1][0]
            again = watch.await_change(out, lambda ready: len(ready) == 3) + out - killed
            time.sleep(2)
        only(world, "killed", load, once=False)
        world.expect("restarts", 1, release.restarts(1))
        world.expect_at_most("seconds until it is Ready", 15, again)
        return f"Ready after {again:.1f} s; three tries 200 ms apart: {load.figures()}"


def a_frozen_process(world):
    """A frozen pod (SIGSTOP) leaves the Service within 5 s and is replaced within 45 s."""
    left, again, load = freeze(world, "frozen")
    world.expect_at_most("seconds until it leaves the Service", OUT_OF_SERVICE_SECONDS, left)
    world.expect_at_most("seconds until it is replaced", REPLACED_SECONDS, again)
    return f"out of the Service after {left:.1f} s, replaced after {again:.1f} s; {load.figures()}"


def a_frozen_process_with_slow_probes(world):
    """The negative control: with probes as Kubernetes has them by itself, the goals of the check above are missed."""
    slow = {"periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3}
    liveness = {**slow, "failureThreshold": 6, "terminationGracePeriodSeconds": 45}
    left, again, load = freeze(world, "frozen-slow", {"probes": {"readiness": slow, "liveness": liveness}})
    world.expect_true(f"it leaves the Service too late, not after {left:.1f} s", left > OUT_OF_SERVICE_SECONDS)
    world.expect_true(f"it is replaced too late, not after {again:.1f} s", again > REPLACED_SECONDS)
    return f"out of the Service after {left:.1f} s, replaced after {again:.1f} s; {load.figures()}"


def freeze(world, tag, values=None):
    """Freezes one of three: after how many seconds it left the Service, after how many it was replaced, and the sender."""
    with Replicas(world, tag, 3, values) as release:
        with release.watch() as watch, release.load(tag, rate=50, tries=3) as load:
            time.sleep(3)
            frozen = time.monotonic()
            release.signal("STOP", 1)
            left = watch.await_change(frozen, lambda ready: release.pod(1) not in ready)
            again = left + watch.await_change(frozen + left, lambda ready: len(ready) == 3)
            time.sleep(2)
        only(world, tag, load, once=False)
        world.expect("restarts of all pods", [0, 1, 0], [release.restarts(number) for number in range(3)])
        return left, again, load


def no_false_alarm(world):
    """Under as much load as the machine makes, no probe fails so often that a pod leaves the Service."""
    fewer, restarts, load = overload(world, "loaded")
    world.expect("moments with fewer than two pods in the Service", [], fewer)
    world.expect("restarts", [0, 0], restarts)
    return f"{load.sent() / LOADED_SECONDS:.0f} deliveries a second for {LOADED_SECONDS} s, {load.figures()}"


def an_alarm(world):
    """The negative control: under the same load, a pod that stands still for some seconds does leave the Service, for these seconds."""
    fewer, restarts, load = overload(world, "still", STILL_SECONDS)
    world.expect_true("a pod leaves the Service", fewer)
    world.expect("restarts", [0, 0], restarts)
    return f"{len(fewer)} times fewer than two pods in the Service, no restart; {load.figures()}"


def overload(world, tag, still=0):
    """Two pods under more load than they can take: when fewer were in the Service, their restarts, and the sender. `still`: for how
    many seconds one of them is frozen meanwhile.
    """
    with Replicas(world, tag, 2) as release:
        with release.watch() as watch:
            time.sleep(1)
            begun = time.monotonic()
            # Faster than it can go: as many at once as there are workers.
            with release.load(tag, rate=5000, keep=True) as load:
                if still:
                    release.signal("STOP", 1)
                    time.sleep(still)
                    release.signal("CONT", 1)
                time.sleep(LOADED_SECONDS - still)
            fewer = [sorted(ready) for at, ready in watch.changes if at > begun and len(ready) < 2]
        return fewer, [release.restarts(number) for number in range(2)], load


def a_strict_spread(world):
    """DoNotSchedule: by the node's name each pod has a place; by a label that no node has, none until a node has it."""
    strict = [{"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}]
    with Replicas(world, "spread", 1, {"topologySpread": {"constraints": strict}}) as release:
        zones = [{**strict[0], "topologyKey": ZONE}]
        release.helm("uninstall", release.name)
        world.cluster.await_true("the pod is gone", lambda: not release.pods())
        release.values["topologySpread"]["constraints"] = zones
        release.install(ready=False)

        def refused():
            """Whether the scheduler has said why the pod has no node."""
            conditions = (release.found() or {}).get("status", {}).get("conditions", [])
            return any("topology spread" in each.get("message", "") for each in conditions)

        world.cluster.await_true("the pod has no node, because none has the label", refused, 30)
        node = f"/api/v1/nodes/{kubernetes.NODE}"
        world.cluster.patch(node, {"metadata": {"labels": {ZONE: "a"}}})
        try:
            again = release.await_ready(1)
        finally:
            world.cluster.patch(node, {"metadata": {"labels": {ZONE: None}}})
        return f"Ready {again:.1f} s after the node has the label"


def evictions(world):
    """The disruption budget lets one pod go at a time."""
    with Replicas(world, "budget", 2) as release:
        release.cluster.await_true(
            "the budget allows one",
            lambda: release.cluster.get(f"/apis/policy/v1/namespaces/budget/poddisruptionbudgets/{release.full}")["status"].get(
                "disruptionsAllowed") == 1,
        )  # fmt: skip
        begun = time.monotonic()
        first, second = (evict(release, number)[0] for number in range(2))
        world.expect("two evictions at once", (201, 429), (first, second))
        release.cluster.await_true("the second one is allowed", lambda: evict(release, 1)[0] == 201, 60)
        after = time.monotonic() - begun
        release.await_ready(2)
        return f"201, then 429 for {after:.1f} s"


def evict(release, number):
    """The answer to an eviction."""
    pod = {"metadata": {"name": release.pod(number), "namespace": release.namespace}}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", **pod}
    return release.cluster.ask("POST", f"{release.path}/pods/{release.pod(number)}/eviction", body)


def a_drained_node(world):
    """kubectl drain of the only node takes one of three pods; the others answer every first try."""
    with Replicas(world, "drained", 3) as release:
        with release.load("drained", rate=100) as load:
            time.sleep(2)
            command = ["drain", kubernetes.NODE, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=20s"]
            selector = "--pod-selector=app.kubernetes.io/instance=calls"
            done = world.cluster.kubectl(*command, selector)
            kept = release.ready()
            world.cluster.kubectl("uncordon", kubernetes.NODE)
            again = release.await_ready(3)
            time.sleep(1)
        world.expect_true(f"the drain is held up by the budget, but found {done.stderr}", "disruption budget" in done.stderr)
        world.expect("Ready pods during the drain", 2, kept)
        world.expect("first tries", {"200": load.sent()}, load.report["first"])
        only(world, "drained", load)
        return f"{load.figures()}, whole {again:.1f} s after uncordon"


def fewer_and_more_replicas(world):
    """What a removed replica had not published waits in its claim, and is published when it is there again."""
    with Replicas(world, "scaled", 3) as release:
        # Not paused, because what lies in its buffers would still reach it.
        world.brokers.do("stop", "nats")
        try:
            with release.load("scaled", rate=100) as load:
                time.sleep(3)
            release.kubectl("scale", f"statefulset/{release.full}", "--replicas=1")
            release.await_ready(1)
            world.cluster.await_true("two pods are gone", lambda: len(release.pods()) == 1, 90)
        finally:
            world.brokers.do("start", "nats")
        # pod 0 publishes its own.
        time.sleep(3)
        meanwhile = sum(call.startswith("scaled-") for call in world.brokers.events("nats"))
        world.expect_true(f"some of {load.sent()} events wait, not {meanwhile}", 0 < meanwhile < load.sent())
        release.kubectl("scale", f"statefulset/{release.full}", "--replicas=3")
        release.await_ready(3)
        only(world, "scaled", load)
        return f"{meanwhile} of {load.sent()} events published with one replica, then all, each once"


def a_broken_revision(world):
    """A revision that cannot start takes one pod; the others answer every first try, and a rollback makes it whole."""
    with Replicas(world, "broken", 3) as release:
        release.make_secret("empty", {"api-tokens": "\n", "admin-token": "admin-token-0123456789abcdef"})
        with release.load("broken", rate=100) as load:
            release.upgrade({"secret": {"name": "empty"}}, ready=False)

            def crashed():
                states = [each.get("state", {}).get("waiting", {}).get("reason") for pod in release.pods()
                          for each in pod["status"].get("containerStatuses", [])]  # fmt: skip
                return "CrashLoopBackOff" in states

            world.cluster.await_true("a pod is in CrashLoopBackOff", crashed, 60)
            kept = release.ready()
            begun = time.monotonic()
            release.helm("rollback", release.name)
            # Kubernetes' documentation asks for it ("forced rollback"): the controller may wait for the broken pod.
            release.kubectl("delete", "pod", release.pod(2), "--ignore-not-found")
            release.await_ready(3)
            again = time.monotonic() - begun
        world.expect("Ready pods with the broken revision", 2, kept)
        world.expect("first tries", {"200": load.sent()}, load.report["first"])
        return f"{load.figures()}, whole {again:.1f} s after the rollback"


def a_full_volume(world):
    """A full volume: deliveries are refused, the pod leaves the Service and is not restarted; with space it goes on."""
    cluster = world.cluster
    cluster.make_storage("little", 1)
    volume = cluster.scratch / "volumes/little-0"
    cluster.node.output("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", volume)
    values = {"journal": {"storageClassName": "little", "size": "80Mi"}, "config": {"journal": LITTLE}}
    with Replicas(world, "full", 1, values) as release:
        with release.watch() as watch:
            with release.load("full-before", rate=50) as before:
                time.sleep(2)
            begun = time.monotonic()
            # dd ends with an error when there is no more room.
            cluster.node.output("sh", "-c", f"dd if=/dev/zero of={volume}/filler bs=64k 2>/dev/null || true")
            with release.load("full", rate=50) as load:
                left = watch.await_change(begun, lambda ready: not ready, 60)
                time.sleep(2)
            cluster.node.output("rm", f"{volume}/filler")
            emptied = time.monotonic()
            again = watch.await_change(emptied, lambda ready: len(ready) == 1, 60)
            with release.load("full-after", rate=50) as after:
                time.sleep(2)
        world.expect("first tries before", {"200": before.sent()}, before.report["first"])
        world.expect("first tries after", {"200": after.sent()}, after.report["first"])
        world.expect_true(f"deliveries are answered 503, not {load.report['first']}", load.report["first"].get("503", 0) > 0)
        world.expect("restarts", 0, release.restarts())
        for tag, each in (("full-before", before), ("full", load), ("full-after", after)):
            only(world, tag, each)
        return f"out of the Service after {left:.1f} s, back {again:.1f} s after there is space; meanwhile {load.figures()}"


CHECKS = [
    a_deleted_pod, a_killed_process, a_frozen_process, a_frozen_process_with_slow_probes, no_false_alarm, an_alarm,
    a_strict_spread, evictions, a_drained_node, fewer_and_more_replicas,
    a_broken_revision, a_full_volume,
]  # fmt: skip
SHORT = [a_deleted_pod, evictions]
