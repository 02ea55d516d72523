"""Owns: the checks of autoscaling by metrics: those of the kubelet, read and served by metrics-server.

Promises: what the autoscaler sees is what the pods use; nothing is made up. Its times are shortened, as kubernetes.py says.
"""

import time

import brokers
import kubernetes
import node as nodes
from failing import only
from release import Release

PORT = 4443
GROUP = "/apis/metrics.k8s.io/v1beta1"
LEAST, MOST = 2, 4
VALUES = {
    "config": {"sinks": {"nats": brokers.SINKS["nats"]}},
    "autoscaling": {"enabled": True, "minReplicas": LEAST, "maxReplicas": MOST},
    # So little that the sender's load is far more than the target.
    "resources": {"requests": {"cpu": "20m"}},
}
# After this the autoscaler would have removed a pod.
QUIET_SECONDS = 60


def start_metrics(cluster, addons):
    """Starts metrics-server, and makes the API server ask it."""
    cluster.node.run(
        "metrics-server", addons / "metrics-server", f"--kubeconfig={cluster.kubeconfig}",
        f"--authentication-kubeconfig={cluster.kubeconfig}", f"--authorization-kubeconfig={cluster.kubeconfig}",
        f"--cert-dir={cluster.scratch}/metrics-server", f"--secure-port={PORT}", "--kubelet-insecure-tls",
        "--kubelet-preferred-address-types=InternalIP", "--metric-resolution=10s", "--kubelet-request-timeout=5s",
    )  # fmt: skip
    path = "/api/v1/namespaces/kube-system/services"
    port = {"name": "https", "port": 443, "targetPort": PORT, "protocol": "TCP"}
    cluster.make(path, {"metadata": {"name": "metrics-server"}, "spec": {"ports": [port]}})
    cluster.make("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", {
        "metadata": {"name": "metrics-server", "labels": {"kubernetes.io/service-name": "metrics-server"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [nodes.ADDRESS]}],
    })  # fmt: skip
    cluster.make("/apis/apiregistration.k8s.io/v1/apiservices", {
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": True, "service": {"name": "metrics-server", "namespace": "kube-system"},
        },
    })  # fmt: skip
    cluster.await_true("the node has metrics", lambda: cluster.get(f"{GROUP}/nodes/{kubernetes.NODE}"))


def by_metrics(world):
    """Autoscaling by real metrics: more pods under load, none removed unless the chart is told so, and nothing lost on the way."""
    world.brokers.start("nats")
    start_metrics(world.cluster, world.addons)
    with Release(world.cluster, "scaling", VALUES) as release:
        release.install(ready=False)
        path = f"/apis/autoscaling/v2/namespaces/{release.namespace}/horizontalpodautoscalers/{release.full}"

        def known():
            """What the autoscaler sees of the target, in percent."""
            metrics = (world.cluster.get(path)["status"].get("currentMetrics") or [{}])[0]
            return metrics.get("resource", {}).get("current", {}).get("averageUtilization")

        def wanted():
            """How many replicas the autoscaler has asked for."""
            return world.cluster.get(release.workload)["spec"]["replicas"]

        release.await_ready(LEAST)
        world.cluster.await_true("the autoscaler has metrics", lambda: known() is not None)
        idle, seen = known(), []
        with release.load("scaling-up", rate=250) as up:
            begun = time.monotonic()

            def whole():
                seen.append(known() or 0)
                return wanted() == MOST and release.ready() == MOST

            world.cluster.await_true(f"{MOST} pods are Ready; found {release.ready()}, {seen[-3:]} %", whole, 180, pause=1)
            up_after = time.monotonic() - begun
            time.sleep(3)
        with release.load("scaling-quiet", rate=10) as quiet:
            time.sleep(QUIET_SECONDS)
            world.expect("replicas without load and without autoscaling.scaleDown", MOST, wanted())
        with release.load("scaling-down", rate=10) as down:
            release.upgrade({"autoscaling": {"scaleDown": True}}, ready=False)
            begun = time.monotonic()
            fewer = lambda: wanted() == LEAST and len(release.pods()) == LEAST  # noqa: E731
            world.cluster.await_true(f"{LEAST} pods are left", fewer, 180, pause=1)
            down_after = time.monotonic() - begun
            time.sleep(2)
        for tag, load in (("scaling-up", up), ("scaling-quiet", quiet), ("scaling-down", down)):
            world.expect(f"{tag}: first tries", {"200": load.sent()}, load.report["first"])
            only(world, tag, load)
        return (
            f"{idle} % of the request idle, at most {max(seen)} % under load; {LEAST} to {MOST} pods Ready after {up_after:.0f} s: "
            f"{up.figures()}; none removed in {QUIET_SECONDS} s; with scaleDown {LEAST} pods after {down_after:.0f} s: {down.figures()}"
        )


CHECKS = [by_metrics]
