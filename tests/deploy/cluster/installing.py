"""Owns: the checks of helm's commands: install, test, upgrade, rollback, uninstall, with each broker and each file of ci/."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import brokers
import kubernetes
from brokers import RABBITMQ_URL
from objects import define
from release import CHART, IMAGE, SECRET, Release, Unexpected, merged

# What the files of ci/ name that this cluster does not have.
TOKEN_IMAGE = "registry.example.com/token:1"


def first_release(world):
    """With NATS: a release is Ready, helm test passes, and its event is in the stream."""
    return whole_life(world, "nats")


def with_kafka(world):
    """With Kafka: the same."""
    return whole_life(world, "kafka")


def with_rabbitmq(world):
    """With RabbitMQ: the same."""
    return whole_life(world, "rabbitmq")


def whole_life(world, broker):
    """Installs, tests, upgrades, rolls back and removes a release."""
    world.brokers.start(broker)
    values = {"config": {"sinks": {broker: brokers.SINKS[broker]}}}
    with Release(world.cluster, f"life-{broker}", values) as release:
        begun = time.monotonic()
        notes = release.install()
        ready = time.monotonic() - begun
        world.expect_true("the notes name the command that waits", f"rollout status statefulset/{release.full}" in notes)
        tested = release.helm("test", release.name, "--logs")
        world.expect_true(f"helm test shows its delivery, but found {tested}", "200" in tested)
        world.expect("the test's pod", None, world.cluster.get(f"{release.path}/pods/{release.full}-test"))
        await_events(world, broker, 1)
        # Each pod is made anew by a changed configuration, and none by the same.
        first = release.found()["metadata"]["uid"]
        release.upgrade()
        world.expect("the pod after an upgrade that changes nothing", first, release.found()["metadata"]["uid"])
        release.upgrade({"config": {"server": {"max_body": "128KiB"}}})
        second = release.found()["metadata"]["uid"]
        world.expect_true("a changed configuration makes a new pod", second != first)
        world.expect_true("it is in force", '"128KiB"' in release.bridge(release.pod(), "config", "show"))
        release.helm("rollback", release.name, "1")
        release.await_rollout()
        world.expect_true("a rollback brings it back", '"128KiB"' not in release.bridge(release.pod(), "config", "show"))
        with release.load(f"life-{broker}", rate=20) as load:
            time.sleep(2)
        world.expect("first tries", {"200": load.sent()}, load.report["first"])
        await_events(world, broker, 1 + load.sent())
        release.helm("uninstall", release.name)
        world.cluster.await_true("the pod is gone", lambda: not release.pods(), 60)
        world.expect("what uninstall leaves", LEFT, left(release))
        # The journal is the old one: the events are in it, though they are published.
        release.install()
        world.expect("events in the journal of a release that is installed again", 1 + load.sent(), in_feed(release))
        return f"Ready {ready:.1f} s after helm install, {load.figures()}"


# What the namespace has by itself is not counted.
LEFT = ["PersistentVolumeClaim journal-calls-sendbird-bridge-0", "Secret sendbird-bridge"]


def left(release):
    """What is left of a release in its namespace, with what its user had made."""
    kinds = "all,pvc,secret,configmap,serviceaccount,pdb,networkpolicy,ingress,hpa"
    items = json.loads(release.kubectl("get", kinds, "--output", "json"))["items"]
    own = {"ServiceAccount default", "ConfigMap kube-root-ca.crt"}
    return sorted({f"{item['kind']} {item['metadata']['name']}" for item in items} - own)


def in_feed(release, number=0):
    """How many events the feed of a pod has."""
    token = "--token-file=/run/secrets/sendbird-bridge/admin-token"
    return len(release.bridge(release.pod(number), "tail", "--no-follow", token).splitlines())


def await_events(world, broker, count, seconds=30):
    """Waits until so many events are in the broker; each must be there once."""
    until = time.monotonic() + seconds
    while True:
        calls = world.brokers.events(broker)
        if sum(calls.values()) >= count or time.monotonic() > until:
            break
        time.sleep(0.3)
    world.expect(f"events in {broker}", count, sum(calls.values()))
    world.expect(f"events that {broker} has twice", [], [call for call, times in calls.items() if times > 1])


# ---- the files of ci/ ------------------------------------------------------------------------------------------------


# What is not as in the file, because it takes a registry, a load balancer or a second family of addresses.
DIFFERENT = {
    "dualstack": {"service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"]}},
    # OpenShift gives pods a group, and with it the right to write to a volume; here nobody does.
    "openshift": {"journal": {"volume": "emptyDir"}},
}
FULL_NAMES = {"everything": "bridge"}
KEYS = {
    "sendbird-bridge": ["kafka-password", "kafka-client-secret", "rabbitmq-url", "nats-token"],
    "calls": ["tokens", "admin", "path-secret", "header-value", "tokens-of-0A1B2C3D", "rabbitmq-url"],
}
CERTIFIED = ("sendbird-bridge-webhook", "sendbird-bridge-admin", "sendbird-bridge-test")


def each_values_file(world):
    """Each file of ci/ is installed, its pods are Ready under the restricted standard, helm test passes, and it is removed."""
    seen = []
    make_what_the_files_name(world)
    for path in sorted((CHART / "ci").glob("*-values.yaml")):
        name = path.name.removesuffix("-values.yaml")
        try:
            seen.append(f"{name} {one_values_file(world, name, path):.0f} s")
        except (Unexpected, TimeoutError) as error:
            world.faults.append(f"{path.name}: {error}")
    return ", ".join(seen)


def one_values_file(world, name, path):
    """The life of a release with this file; after how long it was Ready."""
    with Release(world.cluster, f"ci-{name}", secret=False) as release:
        release.full = FULL_NAMES.get(name, release.full)
        release.values = merged({"image": {**IMAGE, "digest": ""}}, DIFFERENT.get(name, {}))
        make_objects(world, release, name)
        begun = time.monotonic()
        release.helm("install", release.name, CHART, "--values", path, "--values", release.write_values())
        workload = f"/apis/apps/v1/namespaces/{release.namespace}/statefulsets/{release.full}"

        def whole():
            # The autoscaler may have changed the number.
            wanted, pods = world.cluster.get(workload)["spec"]["replicas"], release.pods()
            return len(pods) == wanted and all(kubernetes.is_true(pod, "Ready") for pod in pods)

        ready = world.cluster.await_true(f"the pods are Ready; found {describe(release)}", whole, 60)
        if "kind: Pod" in release.helm("get", "hooks", release.name):
            tested = release.helm("test", release.name, "--logs")
            world.expect_true(f"{name}: helm test shows its delivery, but found {tested}", "200" in tested)
        release.helm("uninstall", release.name)
        return ready


def describe(release):
    """Why pods are not Ready."""
    return [(pod["metadata"]["name"], pod["status"].get("containerStatuses")) for pod in release.pods()]


def make_objects(world, release, name):
    """What the user of a file has in the namespace before."""
    for secret, keys in KEYS.items():
        made = {key: f"the-{key}-0123456789abcdef" for key in keys}
        release.make_secret(secret, {**SECRET, **made, "rabbitmq-url": RABBITMQ_URL})
    files = make_certificates(world.cluster, release)
    for secret in CERTIFIED:
        release.make_secret(secret, files, "kubernetes.io/tls")
    config = {"metadata": {"name": "kafka-ca"}, "data": {"ca.crt": files["ca.crt"]}}
    world.cluster.make(f"{release.path}/configmaps", config)
    if name == "existing-claim":
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Gi"}}}
        world.cluster.make(
            f"{release.path}/persistentvolumeclaims", {"metadata": {"name": "journal-old-name-0"}, "spec": spec}
        )


def make_certificates(cluster, release):
    """An authority's certificate, and one of it for the release's Service and for whoever calls it."""
    home = cluster.scratch / f"tls-{release.namespace}"
    home.mkdir()
    (home / "names").write_text(f"subjectAltName=DNS:{release.full}.{release.namespace}.svc\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        ["req", "-x509", "-days", "2", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority"],
        ["req", *key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=bridge"],
        ["x509", "-req", "-days", "2", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
        + ["-extfile", "names", "-out", "tls.crt"],
    ):
        subprocess.run(["openssl", *command], cwd=home, check=True, capture_output=True)
    return {name: (home / name).read_text() for name in ("ca.crt", "tls.crt", "tls.key")}


def make_what_the_files_name(world):
    """Kinds, classes and an image that a cluster does not have by itself."""
    cluster = world.cluster
    define(cluster, cluster.node.programs / "crds")
    cluster.make("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": "high"}, "value": 1000})
    cluster.make_storage("fast", 2, "ReadWriteOncePod")
    # `once` writes a token and ends; whatever else it is told to do, it stays.
    script = 'echo token > /run/kafka/token; [ "$1" = once ] || exec /busybox sleep 86400'
    root = cluster.scratch / "token"
    root.mkdir()
    (root / "busybox").write_bytes(Path(shutil.which("busybox")).read_bytes())
    (root / "busybox").chmod(0o755)
    cluster.import_image(TOKEN_IMAGE, {"User": "65532", "Entrypoint": ["/busybox", "sh", "-c", script, "token"]}, root)


# Quick checks first, so that a fault shows soon.
CHECKS = [first_release, with_kafka, with_rabbitmq, each_values_file]
SHORT = [first_release]
