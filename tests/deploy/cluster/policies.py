"""Owns: the checks of the NetworkPolicy where it is enforced: kube-router reads it, and makes rules of the node's packet filter.

Promises: it is enforced during these checks alone. Who delivers is in a pod's network, because a node always reaches its own pods.
"""

import contextlib
import time

import brokers
import kubernetes
import node as nodes
from failing import NATS, only
from release import Release, merged
from rolling import roll

ADMITTED, STRANGERS = "ingress", "strangers"
# How soon the engine has to have read what changed.
ENFORCED_SECONDS = 30
POLICY = {
    "webhookFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ADMITTED}}}],
    "adminFrom": [],
    "egress": [
        {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
        {"to": [{"ipBlock": {"cidr": f"{nodes.ADDRESS}/32"}}], "ports": [{"port": brokers.PORTS["nats"], "protocol": "TCP"}]},
    ],
}


class Guest:
    """A pod of nobody's, whose network senders can have."""

    def __init__(self, cluster, namespace):
        self.cluster = cluster
        self.namespace = namespace
        cluster.make("/api/v1/namespaces", {"metadata": {"name": namespace}})
        path = f"/api/v1/namespaces/{namespace}"
        cluster.await_true("the service account", lambda: cluster.get(f"{path}/serviceaccounts/default"))
        container = {"name": "pause", "image": kubernetes.PAUSE, "imagePullPolicy": "Never"}
        cluster.make(f"{path}/pods", {"metadata": {"name": "guest"}, "spec": {"containers": [container]}})
        cluster.await_true("the guest is Ready", lambda: kubernetes.is_true(cluster.get(f"{path}/pods/guest"), "Ready"))
        status = cluster.get(f"{path}/pods/guest")["status"]["containerStatuses"][0]
        self.process = cluster.process(status["containerID"])

    def inside(self, *command):
        """The command as it is to be started for running in the pod's network."""
        return network_of(self.cluster, self.process, *command)


def network_of(cluster, process, *command):
    """The command as it is to be started for running in the network of that process of the node."""
    return cluster.node.inside("nsenter", f"--net=/proc/{process}/ns/net", "--", *command)


def reaches(cluster, process, address, port):
    """Whether that process' network lets a connection to the port begin within a second."""
    done = cluster.command(*network_of(cluster, process, "bash", "-c", f"timeout 1 bash -c '</dev/tcp/{address}/{port}'"))
    return done.returncode == 0


@contextlib.contextmanager
def enforced(cluster, addons):
    """Policies are enforced."""
    cluster.node.run(
        "kube-router", addons / "kube-router", f"--kubeconfig={cluster.kubeconfig}",
        f"--hostname-override={kubernetes.NODE}", "--run-firewall=true", "--run-router=false", "--run-service-proxy=false",
        "--run-loadbalancer=false", f"--service-cluster-ip-range={nodes.SERVICES}", "--health-port=0", "--metrics-port=0",
    )  # fmt: skip
    try:
        yield
    finally:
        cluster.node.kill("kube-router")
        cluster.node.output("sh", "-c", "iptables -F && iptables -X")


def an_enforced_policy(world):
    """An enforced NetworkPolicy: who is named delivers, also in a rollout, and nobody else; helm test passes by itself."""
    cluster = world.cluster
    world.brokers.start("nats")
    with contextlib.ExitStack() as stack:
        guests = {name: Guest(cluster, name) for name in (ADMITTED, STRANGERS)}
        for name in guests:
            stack.callback(cluster.ask, "DELETE", f"/api/v1/namespaces/{name}")
        values = merged({**NATS, "replicas": 3}, {"networkPolicy": POLICY})
        release = stack.enter_context(Release(cluster, "policy", values))
        release.install()
        # The negative control: without an engine everybody gets in.
        webhook, admin = ((address_of(release), port) for port in (8080, 9090))
        for name, guest in guests.items():
            world.expect_true(f"{name} reaches a pod while nobody enforces", reaches(cluster, guest.process, *webhook))
        stack.enter_context(enforced(cluster, world.addons))
        stranger, admitted = guests[STRANGERS], guests[ADMITTED]
        cluster.await_true(
            "a stranger is kept out", lambda: not reaches(cluster, stranger.process, *webhook), ENFORCED_SECONDS
        )
        world.expect("whether who is named reaches the port of deliveries", True, reaches(cluster, admitted.process, *webhook))
        world.expect("whether who is named reaches the admin port", False, reaches(cluster, admitted.process, *admin))
        bridge = cluster.process(release.container())
        world.expect("whether a pod reaches its broker", True, reaches(cluster, bridge, nodes.ADDRESS, brokers.PORTS["nats"]))
        world.expect("whether a pod reaches the API server", False, reaches(cluster, bridge, nodes.ADDRESS, 6443))
        begun = time.monotonic()
        tested = release.helm("test", release.name, "--logs")
        took = time.monotonic() - begun
        with (
            release.load("policy", rate=100, tries=3, within=admitted.inside()) as load,
            release.load("stranger", rate=5, within=stranger.inside()) as other,
        ):
            time.sleep(2)
            roll(release)
            time.sleep(2)
        world.expect("deliveries that three tries lose", 0, load.lost())
        world.expect_true(f"strangers get no answer, but found {other.report['first']}", not other.report["stored"])
        world.expect("restarts", [0, 0, 0], [release.restarts(number) for number in range(3)])
        only(world, "policy", load)
        world.expect_true(f"helm test shows its delivery, but found {tested}", "200" in tested)
        return f"helm test passes in {took:.0f} s; a rollout: {load.figures()}; strangers: {other.figures()}"


def address_of(release, number=0):
    """A pod's address."""
    return release.found(number)["status"]["podIP"]


CHECKS = [an_enforced_policy]
