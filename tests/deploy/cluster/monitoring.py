"""Owns: the checks of what the chart makes for Prometheus: a ServiceMonitor and a PrometheusRule.

Promises: they are read by the real operator, which makes a configuration and rules of them; a real Prometheus runs with these on
the node, not as a pod. In what the operator made, only the directory of the rules is another, and the places are filled in that a
pod's reloader fills in.
"""

import gzip
import json
import time
from base64 import b64decode
from urllib.parse import quote
from urllib.request import urlopen

import yaml

import api
from installing import in_feed
from objects import define
from release import CHART, Release

NAMESPACE = "monitoring"
LABELS = {"team": "calls"}
MONITORED = {
    "config": {"sinks": {}},
    "replicas": 2,
    "serviceMonitor": {"enabled": True, "labels": LABELS, "interval": "1s"},
    "prometheusRule": {"enabled": True, "labels": LABELS},
}
RULES = "/etc/prometheus/rules/prometheus-it-rulefiles-0"
PORT = 9099


class Prometheus:
    """A Prometheus that runs with what the operator makes of the monitors and rules with LABELS, in any namespace."""

    def __init__(self, cluster, addons):
        self.cluster = cluster
        self.addons = addons
        self.home = cluster.scratch / "prometheus"
        (self.home / "rules").mkdir(parents=True)

    def start(self):
        """Starts the operator and asks it for a Prometheus."""
        cluster = self.cluster
        for folder in (cluster.node.programs / "crds", self.addons / "operator-crds"):
            define(cluster, folder)
        cluster.node.run(
            "prometheus-operator", self.addons / "prometheus-operator", "--web.listen-address=127.0.0.1:8383",
            KUBECONFIG=str(cluster.kubeconfig),
        )  # fmt: skip
        (self.home / "token").write_text(api.TOKEN)
        cluster.make("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        chosen = {"matchLabels": LABELS}
        cluster.make(f"/apis/monitoring.coreos.com/v1/namespaces/{NAMESPACE}/prometheuses", {
            "apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": {"name": "it"},
            "spec": {
                # The newest that this operator knows; no pod of it is made.
                "version": "v3.5.0", "replicas": 0, "evaluationInterval": "1s",
                "serviceMonitorSelector": chosen, "serviceMonitorNamespaceSelector": {},
                "ruleSelector": chosen, "ruleNamespaceSelector": {},
                "apiserverConfig": {
                    "host": cluster.url, "tlsConfig": {"caFile": str(cluster.authority)},
                    "authorization": {"type": "Bearer", "credentialsFile": str(self.home / "token")},
                },
            },
        })  # fmt: skip

    def configure(self, job):
        """Takes what the operator has made once this job is in it, and starts Prometheus with it; the names of all jobs."""
        path = f"/api/v1/namespaces/{NAMESPACE}"
        found = {}

        def made():
            secret = self.cluster.get(f"{path}/secrets/prometheus-it") or {}
            packed = secret.get("data", {}).get("prometheus.yaml.gz")
            found["text"] = gzip.decompress(b64decode(packed)).decode() if packed else "{}"
            found["rules"] = (self.cluster.get(f"{path}/configmaps/prometheus-it-rulefiles-0") or {}).get("data") or {}
            return job in found["text"] and found["rules"]

        self.cluster.await_true(f"the operator makes {job} and its rules", made, 60)
        for name, text in found["rules"].items():
            (self.home / "rules" / name).write_text(text)
        (self.home / "prometheus.yaml").write_text(
            # What the reloader that a pod of Prometheus has beside it fills in.
            found["text"].replace("$(SHARD)", "0").replace("$(POD_NAME)", "it").replace(RULES, str(self.home / "rules"))
        )
        self.cluster.node.run(
            "prometheus", self.addons / "prometheus", f"--config.file={self.home}/prometheus.yaml", f"--storage.tsdb.path={self.home}/data",
            f"--web.listen-address=127.0.0.1:{PORT}",
        )  # fmt: skip
        self.cluster.await_true("Prometheus is ready", lambda: self.cluster.http(f"http://127.0.0.1:{PORT}/-/ready") == 200, 60)
        return [each["job_name"] for each in yaml.safe_load(found["text"])["scrape_configs"]]

    def ask(self, path):
        """What Prometheus answers."""
        with urlopen(f"http://127.0.0.1:{PORT}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def up(self):
        """The pods that it has read, each with its job."""
        targets = self.ask("targets?state=active")["activeTargets"]
        return {each["labels"]["pod"]: each["labels"]["job"] for each in targets if each["health"] == "up"}

    def value(self, query):
        """The sum of what a query finds."""
        return sum(float(each["value"][1]) for each in self.ask(f"query?query={quote(query)}")["result"])


def discovery(world):
    """Prometheus finds each pod by the ServiceMonitor, takes all rules, and counts each delivery."""
    prometheus = Prometheus(world.cluster, world.addons)
    prometheus.start()
    unlabelled = {**MONITORED, "serviceMonitor": {"enabled": True}, "replicas": 1}
    with Release(world.cluster, "unseen", unlabelled) as unseen, Release(world.cluster, "monitored", MONITORED) as release:
        unseen.install()
        release.install()
        jobs = prometheus.configure(f"serviceMonitor/{release.namespace}/{release.full}/0")
        world.expect("jobs of the configuration", [f"serviceMonitor/{release.namespace}/{release.full}/0"], jobs)
        pods = {release.pod(number): "sendbird-bridge" for number in range(3)}
        two = {name: job for name, job in pods.items() if name != release.pod(2)}
        begun = time.monotonic()
        world.cluster.await_true(f"two pods are read; found {prometheus.up()}", lambda: prometheus.up() == two, 60)
        found = time.monotonic() - begun
        with release.load("monitored", rate=50) as load:
            time.sleep(5)
        stored = sum(in_feed(release, number) for number in range(2))
        world.expect("events in the feeds", load.sent(), stored)
        query = 'sum(sendbird_bridge_deliveries_total{job="sendbird-bridge"})'
        world.cluster.await_true(f"Prometheus counts {stored}", lambda: prometheus.value(query) == stored, 20)
        recorded = "instance:sendbird_bridge_deliveries:rate5m"
        world.cluster.await_true(f"{recorded} is recorded", lambda: prometheus.value(recorded) > 0, 20)
        groups = prometheus.ask("rules")["groups"]
        loaded = {group["name"]: [rule["name"] for rule in group["rules"]] for group in groups}
        written = yaml.safe_load((CHART / "files/rules.yaml").read_text(encoding="utf-8"))["groups"]
        rules = {group["name"]: [rule.get("alert") or rule["record"] for rule in group["rules"]] for group in written}
        world.expect("the rules", rules, loaded)
        unwell = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] not in ("ok", "unknown")]
        world.expect("rules that fail", [], unwell)
        begun = time.monotonic()
        release.upgrade({"replicas": 3})
        world.cluster.await_true(f"the third is read; found {prometheus.up()}", lambda: prometheus.up() == pods, 60)
        third = time.monotonic() - begun
        world.expect("pods of the release without the label", {}, {pod: 1 for pod in prometheus.up() if pod not in pods})
        return (
            f"two pods read after {found:.1f} s, a third {third:.1f} s after helm upgrade; {stored} deliveries counted, "
            f"{sum(map(len, rules.values()))} rules"
        )


CHECKS = [discovery]
