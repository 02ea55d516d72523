"""Owns: what must hold for the Helm chart. Run by tests/deploy/chart, which brings the tools.

Promises: one line for each check ("ok", or "FAILED" with the faults below it); exit status 1 if one failed. A check that
looked at nothing fails.
"""

import argparse
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/sendbird-bridge"
GOLDEN = ROOT / "tests/deploy/golden"
LINKS = {
    "files/rules.yaml": ROOT / "deploy/prometheus/rules.yaml",
    "files/dashboard.json": ROOT / "deploy/grafana/dashboard.json",
}
# The oldest version that Chart.yaml allows, the last without the sleep action, and the newest there is a schema for.
VERSIONS = ("1.25.0", "1.29.0", "1.37.0")
# Names of the objects that Kubernetes itself does not have; their own types judge them, in kube-check.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}
PEM = {"cert_file": "tls.crt", "key_file": "tls.key", "ca_file": "ca.crt", "client_ca_file": "ca.crt"}
LEAST = ["--set", "secret.name=s"]

# What is set, and a part of what must be said. Without the message a value would be refused for any reason.
WRONG = [
    (["--set", "secret.name="], "secret.name: expected the name of an existing Secret"),
    (["--set", "sekret.name=x"], "additional properties 'sekret' not allowed"),
    (["--set", "image.tga=x"], "additional properties 'tga' not allowed"),
    (["--set-string", "replicas=2"], "got string, want integer"),
    (["--set", "replicas=-1"], "minimum: got -1, want 0"),
    (["--set", "journal.volume=disk"], "value must be one of 'claim', 'emptyDir'"),
    (["--set", "journal.size=big"], "does not match pattern"),
    (["--set", "journal.size=8Gi"], "journal.size: expected more than config.journal.max_bytes (8GiB)"),
    (["--set", "journal.size=8.5G"], "journal.size: expected more than config.journal.max_bytes (8GiB)"),
    (["--set", "journal.accessModes={ReadWriteMany}"], "value must be one of 'ReadWriteOnce', 'ReadWriteOncePod'"),
    (["--set", "config.journal.max_bytes=64GiB"], "journal.size: expected more than config.journal.max_bytes (64GiB)"),
    (["--set", "config.journal.max_bytes=512MiB"], "config.journal.retain_bytes: expected at most config.journal.max_bytes"),
    (
        ["--set", "config.journal.max_bytes=4GiB,config.journal.retain_bytes=5000MiB"],
        "config.journal.retain_bytes: expected at most config.journal.max_bytes (4GiB), but found 5000MiB",
    ),
    (["--set", "config.journal.max_bytes=512KiB"], "config.journal.max_bytes: expected at least 1MiB"),
    (["--set", "config.server.proxy_protocol=true"], "config.server.proxy_protocol: expected the load balancer's networks"),
    (["--set", "config.sinks.k.type=kafka"], "config.sinks.k.brokers: expected it because the type is kafka"),
    (["--set", "config.sinks.n.type=nats"], "config.sinks.n.servers: expected it because the type is nats"),
    (["--set", "config.sinks.r.type=rabbitmq"], "config.sinks.r.url_file: expected it because the type is rabbitmq"),
    (["--set", "config.journal.max_bytes=5"], "got number, want string"),
    (["--set", "config.sever.path=/x"], "additional properties 'sever' not allowed"),
    (["--set", "config.server.pth=/x"], "additional properties 'pth' not allowed"),
    (["--set", "config.sinks.k.type=pulsar"], "value must be one of"),
    (["--set", "config.sinks.k.brokers={x:1}"], "missing property 'type'"),
    (["--set", "config.sinks.k.type=kafka,config.sinks.k.borkers={x:1}"], "'borkers' not allowed"),
    (["--set", "config.sinks.k.type=kafka,config.sinks.k.brokers=x:1"], "got string, want array"),
    (["--set", "config.server.listen=0.0.0.0:1"], "config.server.listen: expected nothing"),
    (["--set", "config.admin.listen=0.0.0.0:1"], "config.admin.listen: expected nothing"),
    (["--set", "config.server.tls.cert_file=/x"], "config.server.tls: expected nothing"),
    (["--set", "config.admin.tls.cert_file=/x"], "config.admin.tls: expected nothing"),
    (["--set", "config.journal.dir=/x"], "config.journal.dir: expected nothing"),
    (["--set", "config.access.api_tokens={canary-token}"], "config.access.api_tokens: expected api_tokens_file"),
    (
        ["--set", "config.applications.A-1.api_tokens={canary-token}"],
        "config.applications.A-1.api_tokens: expected api_tokens_file",
    ),
    (["--set", "config.admin.token=canary-token"], "config.admin.token: expected token_file"),
    (
        ["--set", "config.sinks.r.type=rabbitmq,config.sinks.r.url=amqp://canary-token@h"],
        "config.sinks.r.url: expected url_file",
    ),
    (
        ["--set", "config.access.header.name=x,config.access.header.value=canary-token"],
        "config.access.header.value: expected value_file",
    ),
    (["--set", "nameOverride=-x"], "does not match pattern"),
    (["--set", r"commonLabels.app\.kubernetes\.io/name=x"], "commonLabels: expected labels that the chart does not set"),
    (["--set", r"podLabels.app\.kubernetes\.io/component=x"], "podLabels: expected labels that the chart does not set"),
    (["--set", "extraContainers[0].name=bridge,extraContainers[0].image=i"], "'not' failed"),
    (["--set", "initContainers[0].name=a"], "missing property 'image'"),
    # It would hold for zones too, and leave pods without a node where no node has a zone.
    (["--set", "topologySpread.whenUnsatisfiable=DoNotSchedule"], "additional properties 'whenUnsatisfiable' not allowed"),
    (["--set", "topologySpread.constraints[0].topologyKey=a"], "missing property 'whenUnsatisfiable'"),
    (["--set", "extraVolumes[0].name=journal"], "'not' failed"),
    (["--set", "extraVolumeMounts[0].name=a"], "missing property 'mountPath'"),
    (["--set", "hostAliases[0].ip=10.0.0.5"], "missing property 'hostnames'"),
    (["--set", "service.ipFamilies={IPv5}"], "value must be one of 'IPv4', 'IPv6'"),
    (["--set", "securityContext.user=0"], "minimum: got 0, want 1"),
    (["--set", "terminationGracePeriodSeconds=29"], "terminationGracePeriodSeconds: expected at least 30"),
    (["--set", "replicas=2,config.reconcile.every=10m"], "config.reconcile: expected replicas=1"),
    (["--set", "autoscaling.enabled=true,journal.volume=emptyDir"], "autoscaling.enabled: expected journal.volume=claim"),
    (["--set", "journal.existingClaim=c,replicas=2"], "journal.existingClaim: expected journal.volume=claim and replicas=1"),
    (["--set", "journal.existingClaim=c,journal.volume=emptyDir"], "journal.existingClaim: expected journal.volume=claim"),
    (["--set", "autoscaling.enabled=true,autoscaling.maxReplicas=1"], "autoscaling.maxReplicas: expected at least"),
    (["--set", "tls.server.clientCaKey=ca.crt"], "tls.server.clientCaKey: expected tls.server.secretName"),
    (["--set", "test.clientCertificate.secretName=x"], "test.clientCertificate.secretName: expected tls.server.clientCaKey"),
    (["--set", "test.clientCertificate.name=x"], "additional properties 'name' not allowed"),
    (["--set", "ingress.enabled=true"], "ingress.host: expected the name"),
    (["--set", "ingress.extraHosts[0].tlsSecretName=x"], "missing property 'host'"),
    (["--set", "httpRoute.enabled=true"], "httpRoute.parentRefs: expected at least one Gateway"),
    (["--set", "extraFiles[0].mountPath=/x"], "oneOf"),
    (["--set", "config.access.path_secret_file=/elsewhere"], "config.access.path_secret_file: expected a file below"),
    (["--kube-version", "1.24.0"], "chart requires kubeVersion"),
]

EVERY_OBJECT = [
    "--set",
    "ingress.enabled=true,ingress.host=h,httpRoute.enabled=true,httpRoute.parentRefs[0].name=g,autoscaling.enabled=true,"
    "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
]

# A fact, what is set (besides LEAST) for it to be seen, and how to see it in what is rendered.
RENDERED = [
    (
        "pods run as the image's user",
        [],
        lambda release: all(user_of(pod) == [65532, 65532, 65532] for pod in release.pods()),
    ),
    (
        "one replica stops at once",
        ["--kube-version", "1.37.0"],
        lambda release: release.configuration()["server"]["linger"] == "0s"
        and "lifecycle" not in release.pod()["containers"][0],
    ),
    (
        "one of several goes on answering for a while",
        ["--kube-version", "1.37.0", "--set", "replicas=2"],
        lambda release: "linger" not in release.configuration()["server"]
        and release.pod()["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}},
    ),
    (
        "OpenShift is recognized, and gives pods their user",
        ["--api-versions", "security.openshift.io/v1"],
        lambda release: all(user_of(pod) == [] for pod in release.pods()),
    ),
    (
        "a user by number holds on OpenShift too",
        ["--api-versions", "security.openshift.io/v1", "--set", "securityContext.user=1000700000"],
        lambda release: all(user_of(pod) == [1000700000] * 3 for pod in release.pods()),
    ),
    (
        "each object has the common labels, pods too, but no claim and no selector",
        ["--set", "commonLabels.team=calls", *EVERY_OBJECT],
        lambda release: all(found["metadata"]["labels"]["team"] == "calls" for found in release.objects)
        and len(release.objects) == 14
        and release.template()["metadata"]["labels"]["team"] == "calls"
        and "team" not in json.dumps([release.claim(), release.selectors()]),
    ),
    (
        "an object's own label goes before the common one",
        [*EVERY_OBJECT, "--set", "commonLabels.team=a,podLabels.team=b,serviceMonitor.labels.team=c"],
        lambda release: release.template()["metadata"]["labels"]["team"] == "b"
        and release.one("ServiceMonitor")["metadata"]["labels"]["team"] == "c"
        and release.one("StatefulSet")["metadata"]["labels"]["team"] == "a",
    ),
    (
        "nameOverride is in every name, and not in the label that becomes `job`",
        ["--set", "nameOverride=hooks", *EVERY_OBJECT],
        lambda release: all(found["metadata"]["name"].startswith("release-hooks") for found in release.objects)
        and all(found["metadata"]["labels"]["app.kubernetes.io/name"] == "sendbird-bridge" for found in release.objects),
    ),
    (
        "fullnameOverride is the whole name",
        ["--set", "nameOverride=hooks,fullnameOverride=calls", *EVERY_OBJECT],
        lambda release: {re.sub("-(headless|dashboard|test)$", "", found["metadata"]["name"]) for found in release.objects}
        == {"calls"},
    ),
    (
        "each host of the ingress has its rule, and its own certificate",
        ["--set", "ingress.enabled=true,ingress.host=a,ingress.tlsSecretName=at"]
        + ["--set", "ingress.extraHosts[0].host=b,ingress.extraHosts[0].tlsSecretName=bt,ingress.extraHosts[1].host=c"],
        lambda release: [rule["host"] for rule in release.one("Ingress")["spec"]["rules"]] == ["a", "b", "c"]
        and len({json.dumps(rule["http"]) for rule in release.one("Ingress")["spec"]["rules"]}) == 1
        and release.one("Ingress")["spec"]["tls"]
        == [{"hosts": ["a"], "secretName": "at"}, {"hosts": ["b"], "secretName": "bt"}],
    ),
    (
        "an existing claim is the journal's volume, whatever its size",
        ["--set", "journal.existingClaim=old,config.journal.max_bytes=64GiB"],
        lambda release: "volumeClaimTemplates" not in release.one("StatefulSet")["spec"]
        and [volume["persistentVolumeClaim"]["claimName"] for volume in release.pod()["volumes"] if volume["name"] == "journal"]
        == ["old"],
    ),
    (
        "a pod that answers nothing leaves the Service within 5 s, and is being replaced after 35 s",
        [],
        lambda release: silence(release.probe("readiness")) < 5
        and silence(release.probe("liveness")) + release.probe("liveness")["terminationGracePeriodSeconds"] < 35,
    ),
    (
        "a restarted pod is Ready within a second of its listener, and has five minutes to open a journal",
        [],
        lambda release: release.probe("startup")["periodSeconds"] == 1 and release.probe("startup")["failureThreshold"] == 300,
    ),
    (
        "a strict spread holds for the labels that are named with it, and for no other",
        ["--set", "topologySpread.constraints[1].topologyKey=kubernetes.io/hostname"]
        + ["--set", "topologySpread.constraints[1].whenUnsatisfiable=DoNotSchedule"]
        + ["--set", "topologySpread.constraints[0].topologyKey=zone,topologySpread.constraints[0].whenUnsatisfiable=ScheduleAnyway"],
        lambda release: [
            (found["topologyKey"], found["whenUnsatisfiable"], found["maxSkew"])
            for found in release.pod()["topologySpreadConstraints"]
        ]
        == [("zone", "ScheduleAnyway", 1), ("kubernetes.io/hostname", "DoNotSchedule", 1)],
    ),
    (
        "an ALB's subnets reach the port of deliveries alone, and are trusted to name the sender",
        ["--values", CHART / "ci/alb-values.yaml"],
        lambda release: release.admitted("webhook") == ["10.0.0.0/24", "10.0.1.0/24"]
        and release.admitted("admin") == []
        and release.configuration()["access"]["trusted_proxies"] == ["10.0.0.0/24", "10.0.1.0/24"]
        and release.health_paths() == {"/healthz"},
    ),
    (
        "Google's health checks reach the port of deliveries alone, and idle connections outlive the load balancer's",
        ["--values", CHART / "ci/gke-values.yaml"],
        lambda release: release.admitted("webhook") == ["130.211.0.0/22", "35.191.0.0/16"]
        and release.admitted("admin") == []
        and release.configuration()["server"]["idle_timeout"] == "620s",
    ),
    (
        "nginx's pods alone deliver",
        ["--values", CHART / "ci/nginx-values.yaml"],
        lambda release: [
            source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for source in release.sources("webhook")
            if "namespaceSelector" in source
        ]
        == ["ingress-nginx"],
    ),
    (
        "HAProxy sends the header that the bridge expects, and asks for the path that it answers",
        ["--values", CHART / "ci/haproxy-values.yaml"],
        lambda release: release.all("Service")[0]["metadata"]["annotations"]["haproxy.org/send-proxy-protocol"] == "proxy-v2"
        and release.configuration()["server"]["proxy_protocol"] is True
        and release.health_paths() == {"/healthz"}
        and release.all("Pod") == [],
    ),
    (
        "helm test waits for a policy engine to let its pod in",
        [],
        lambda release: "--connect-within=15s" in release.one("Pod")["spec"]["containers"][0]["args"],
    ),
    (
        "the pod of a test that passed is deleted",
        [],
        lambda release: release.one("Pod")["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        == "before-hook-creation,hook-succeeded",
    ),
    (
        "the families of addresses are the cluster's choice, and the bridge listens on IPv4",
        [],
        lambda release: release.listens() == ["0.0.0.0:8080", "0.0.0.0:9090"]
        and all("ipFamilies" not in spec and "ipFamilyPolicy" not in spec for spec in release.services()),
    ),
    (
        "with IPv6 alone, the bridge listens on it",
        ["--set", "service.ipFamilies={IPv6}"],
        lambda release: release.listens() == ["[::]:8080", "[::]:9090"]
        and all(spec["ipFamilies"] == ["IPv6"] for spec in release.services()),
    ),
    (
        "with both families, the bridge listens on both",
        ["--set", "service.ipFamilyPolicy=PreferDualStack"],
        lambda release: release.listens() == ["[::]:8080", "[::]:9090"]
        and all(spec["ipFamilyPolicy"] == "PreferDualStack" for spec in release.services()),
    ),
]


class Release:
    """The objects that were rendered."""

    def __init__(self, text):
        self.text = text
        self.objects = documents(text)

    def all(self, kind):
        """Those of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind):
        """The only one of its kind."""
        (found,) = self.all(kind)
        return found

    def template(self):
        """What the bridge's pods are made from."""
        return self.one("StatefulSet")["spec"]["template"]

    def pod(self):
        """The bridge's pod."""
        return self.template()["spec"]

    def probe(self, name):
        """A probe of the bridge's container."""
        return self.pod()["containers"][0][f"{name}Probe"]

    def claim(self):
        """What the claims of the journals are made from."""
        (claim,) = self.one("StatefulSet")["spec"]["volumeClaimTemplates"]
        return claim

    def selectors(self):
        """Those of all objects."""
        return [found["spec"][key] for found in self.objects for key in ("selector", "podSelector") if key in found.get("spec", {})]

    def services(self):
        """What the two Services are."""
        return [found["spec"] for found in self.all("Service")]

    def configuration(self):
        """The configuration file, parsed."""
        return configuration_table(self.text)

    def sources(self, port):
        """Who may connect to a port."""
        rules = self.one("NetworkPolicy")["spec"]["ingress"]
        return [source for rule in rules if rule["ports"][0]["port"] == port for source in rule["from"]]

    def admitted(self, port):
        """The networks that may connect to a port."""
        return [source["ipBlock"]["cidr"] for source in self.sources(port) if "ipBlock" in source]

    def health_paths(self):
        """The paths of health checks: what the load balancer asks, and what the bridge answers."""
        asked = self.one("Ingress")["metadata"].get("annotations", {}) | self.all("Service")[0]["metadata"].get("annotations", {})
        paths = [path for key, path in asked.items() if key.endswith(("/healthcheck-path", "/check-http"))]
        return {*paths, self.configuration()["server"]["health_path"]}

    def listens(self):
        """Where the bridge listens."""
        table = self.configuration()
        return [table["server"]["listen"], table["admin"]["listen"]]

    def pods(self):
        """The bridge's pod and that of `helm test`."""
        return [self.pod(), self.one("Pod")["spec"]]


def silence(probe):
    """Seconds until a probe fails at the latest: the first may come a period after the silence began, and the last is waited for."""
    period, timeout = probe["periodSeconds"], probe["timeoutSeconds"]
    return period + (probe["failureThreshold"] - 1) * max(period, timeout) + timeout


def user_of(pod):
    """User, group and group of volumes, as far as the pod names them."""
    context = pod["securityContext"]
    return [context[key] for key in ("runAsUser", "runAsGroup", "fsGroup") if key in context]


# The kinds that a cluster with nothing added knows of the chart's objects, as far as helm asks for them.
KINDS = {
    "v1": {"configmaps": "ConfigMap", "pods": "Pod", "secrets": "Secret", "serviceaccounts": "ServiceAccount", "services": "Service"},
    "apps/v1": {"statefulsets": "StatefulSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}


class Cluster:
    """Answers GET as an API server with these objects would, so that what the chart reads of a cluster (`lookup`, the kinds
    that there are) is tested without one. `kinds` are more than KINDS, in the same form.
    """

    def __init__(self, scratch, *objects, kinds=None):
        kinds = KINDS | (kinds or {})
        groups = [group(name) for name in kinds if name != "v1"]
        answers = {
            "/version": {"major": "1", "minor": "37", "gitVersion": f"v{VERSIONS[-1]}"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        }
        for name, plurals in kinds.items():
            path = "/api/v1" if name == "v1" else f"/apis/{name}"
            resources = [
                {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
                for plural, kind in plurals.items()
            ]
            answers[path] = {"kind": "APIResourceList", "groupVersion": name, "resources": resources}
            for found in objects:
                for plural in (plural for plural, kind in plurals.items() if kind == found["kind"]):
                    answers[f"{path}/namespaces/calls/{plural}/{found['metadata']['name']}"] = found

        class Handler(http.server.BaseHTTPRequestHandler):
            """One request."""

            def do_GET(self):
                """The answer, or that there is none."""
                found = answers.get(self.path.partition("?")[0])
                missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
                body = json.dumps(found or missing).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments):
                """Nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.kubeconfig = Path(scratch) / f"kubeconfig-{self.server.server_port}"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "users": [{"name": "it", "user": {}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }  # fmt: skip
        self.kubeconfig.write_text(json.dumps(config), encoding="utf-8")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_arguments):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def group(name):
    """A group of kinds, as the API server lists it."""
    version = {"groupVersion": name, "version": name.partition("/")[2]}
    return {"name": name.partition("/")[0], "versions": [version], "preferredVersion": version}


class Checks:
    """The tools, what was rendered, and what became of each check."""

    def __init__(self, options):
        self.options = options
        self.failed = 0
        self.count = 0
        self.ci = sorted((CHART / "ci").glob("*-values.yaml"))

    def report(self, what, faults, looked_at):
        """One line, and one for each fault."""
        self.count += 1
        if looked_at == 0:
            faults = [*faults, "expected something to look at, but found nothing"]
        if faults:
            self.failed += 1
            print(f"FAILED  {what}")
            for fault in faults:
                print("\n".join(f"        {line}" for line in str(fault).splitlines()))
        else:
            print(f"ok      {what}: {looked_at}")
        sys.stdout.flush()

    def run(self, *command, stdin=None, env=None):
        """The finished process; its output is text."""
        return subprocess.run(
            [str(part) for part in command], input=stdin, env=env, capture_output=True, text=True, check=False
        )

    def render(self, version, *arguments):
        """All manifests of a release, hooks too. The process, so that a failure can be looked at."""
        return self.run(
            self.options.helm, "template", "release", CHART, "--namespace", "calls", "--kube-version", version, *arguments
        )


def name_of(path):
    """kafka for ci/kafka-values.yaml."""
    return path.name.removesuffix("-values.yaml")


def documents(text):
    """The objects of rendered text."""
    return [document for document in yaml.safe_load_all(text) if document]


def label(document):
    """Kind and name."""
    return f"{document.get('kind')} {document.get('metadata', {}).get('name')}"


def render_all(checks):
    """Every ci file at every version; `helm lint --strict` of each too."""
    jobs = [(path, version) for path in checks.ci for version in VERSIONS]
    with ThreadPoolExecutor(4) as pool:
        lints = list(
            pool.map(lambda path: checks.run(checks.options.helm, "lint", "--strict", CHART, "--values", path), checks.ci)
        )
        outs = list(pool.map(lambda job: checks.render(job[1], "--values", job[0]), jobs))
    faults = [f"{path.name}: {lint.stdout}{lint.stderr}" for path, lint in zip(checks.ci, lints) if lint.returncode]
    checks.report("helm lint --strict", faults, len(lints))
    faults, rendered = [], {}
    for (path, version), out in zip(jobs, outs):
        if out.returncode:
            faults.append(f"{path.name} for {version}: {out.stderr}")
        else:
            rendered[name_of(path), version] = out.stdout
    checks.report("helm template", faults, len(jobs))
    return rendered


def check_schemas(checks, rendered):
    """Kubernetes' published schemas, strict: an unknown field is a fault."""
    faults, looked_at = [], 0
    for (name, version), text in rendered.items():
        for document in documents(text):
            if document["kind"] in FOREIGN:
                continue
            looked_at += 1
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                faults.append(f"{name} for {version}: {label(document)}: {error.message} at {list(error.path)}")
            except kubernetes_validate.SchemaNotFoundError as error:
                faults.append(f"{name} for {version}: {label(document)}: {error.message}")
    checks.report(f"manifests fit the schemas of Kubernetes {', '.join(VERSIONS)}", faults, looked_at)


def check_types(checks, rendered):
    """Kubernetes' own types and its own judgement of pods."""
    faults = []
    for (name, version), text in rendered.items():
        out = checks.run(checks.options.kube_check, stdin=text)
        if out.returncode:
            faults.append(f"{name} for {version}: {out.stdout}{out.stderr}")
    checks.report("the API server would take each manifest, and pods keep the restricted Pod Security Standard", faults, len(rendered))
    kinds = {document["kind"] for text in rendered.values() for document in documents(text)}
    faults = [f"expected a {kind} in a ci file, but found none" for kind in sorted(FOREIGN - kinds)]
    checks.report("what Kubernetes has no schema for is rendered too", faults, len(kinds))


def check_pods(checks, rendered):
    """What the standard leaves open, and the times of a stop."""
    source = (ROOT / "src/app.rs").read_text(encoding="utf-8")
    limit = int(re.search(r"STOP_LIMIT: Duration = Duration::from_secs\((\d+)\)", source)[1])
    faults, looked_at = [], 0
    for (name, version), text in rendered.items():
        for document in documents(text):
            if document["kind"] not in ("StatefulSet", "Pod"):
                continue
            looked_at += 1
            spec = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
            container = spec["containers"][0]
            for what, holds in {
                "a read-only root file system": container["securityContext"]["readOnlyRootFilesystem"] is True,
                "a user, unless the cluster gives it": user_of(spec) == ([] if name == "openshift" else [65532] * 3),
                "no service account token": spec["automountServiceAccountToken"] is False,
                "no service links": spec["enableServiceLinks"] is False,
                "a limit of memory": "memory" in container["resources"]["limits"],
            }.items():
                if not holds:
                    faults.append(f"{name} for {version}: {label(document)}: expected {what}")
            if document["kind"] == "Pod":
                continue
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            grace = spec["terminationGracePeriodSeconds"]
            if grace < limit + sleep + 5:
                faults.append(f"{name} for {version}: expected a grace period over {limit} s + {sleep} s, found {grace} s")
            if sleep and version < "1.30":
                faults.append(f"{name} for {version}: expected no sleep action before 1.30")
            # One replica stops at once; with autoscaling the manifest names no number, and there are several.
            several = document["spec"].get("replicas", 2) > 1
            if bool(sleep) != (several and version >= "1.30"):
                faults.append(f"{name} for {version}: expected a sleep action: {several}, but found {sleep} s")
    checks.report("pods: user, file system, tokens, memory, times of a stop", faults, looked_at)


def check_links(checks):
    """Rules and dashboard are those of deploy/, by links that helm follows, and come out of the chart as they went in."""
    faults = []
    for link, original in LINKS.items():
        path = CHART / link
        if not original.exists():
            faults.append(f"{link}: expected a link to {original.relative_to(ROOT)}, but that does not exist")
        elif not path.is_symlink() or path.resolve() != original:
            faults.append(f"{link}: expected a link to {original.relative_to(ROOT)}, but found something else")
        elif original.read_bytes() != path.read_bytes():
            faults.append(f"{link} differs from {original.relative_to(ROOT)}")
    checks.report("files/ are links", faults, len(LINKS))
    out = checks.render(VERSIONS[-1], *LEAST, "--set", "prometheusRule.enabled=true,dashboard.enabled=true")
    faults = [] if out.returncode == 0 else [out.stderr]
    found = {document["kind"] + document["metadata"]["name"]: document for document in documents(out.stdout)}
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text(encoding="utf-8"))
    if found.get("PrometheusRulerelease-sendbird-bridge", {}).get("spec") != rules:
        faults.append("expected files/rules.yaml as the spec of the PrometheusRule, but found something else")
    config = found.get("ConfigMaprelease-sendbird-bridge-dashboard", {}).get("data", {})
    if json.loads(config.get("sendbird-bridge.json", "null")) != json.loads((CHART / "files/dashboard.json").read_text()):
        faults.append("expected files/dashboard.json in the ConfigMap, but found something else")
    checks.report("rules and dashboard come out as they went in", faults, len(found))


def check_wrong(checks):
    """Each wrong value is refused, with its message, and no secret is repeated in it."""
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda row: checks.render(VERSIONS[-1], *LEAST, *row[0]), WRONG))
    faults = []
    for (arguments, message), out in zip(WRONG, outs):
        if out.returncode == 0:
            faults.append(f"{arguments}: expected a refusal, but it was rendered")
        elif message not in out.stderr:
            faults.append(f"{arguments}: expected {message!r}, but found {out.stderr.strip()!r}")
        elif "canary-token" in out.stderr:
            faults.append(f"{arguments}: the secret is repeated in {out.stderr.strip()!r}")
    checks.report("wrong values are refused, with a message", faults, len(WRONG))


def check_cluster(checks):
    """What the chart reads of the cluster: the StatefulSet that runs, and whether it is OpenShift."""

    def render(cluster, *arguments):
        return checks.render(
            VERSIONS[-1], *LEAST, "--dry-run=server", "--is-upgrade", "--disable-openapi-validation",
            "--kubeconfig", cluster.kubeconfig, *arguments,
        )  # fmt: skip

    faults, looked_at = [], 0
    live = Release(checks.render(VERSIONS[-1], *LEAST).stdout).one("StatefulSet")
    without = {**live, "spec": {key: value for key, value in live["spec"].items() if key != "volumeClaimTemplates"}}
    command = "kubectl delete statefulset release-sendbird-bridge --namespace calls --cascade=orphan"
    for found, arguments, refusal in [
        (live, [], None),
        (live, ["--set", "journal.size=16384Mi"], None),
        (live, ["--set", "journal.size=64Gi"], "journal.size: expected 16Gi"),
        (live, ["--set", "journal.size=9Gi"], "journal.size: expected 16Gi"),
        (live, ["--set", "journal.storageClassName=fast"], 'journal.storageClassName: expected ""'),
        (live, ["--set", "journal.accessModes={ReadWriteOncePod}"], 'journal.accessModes: expected "ReadWriteOnce"'),
        (live, ["--set", "journal.annotations.a=b"], "journal.annotations: expected"),
        (live, ["--set", "journal.volume=emptyDir"], "journal: expected the kind of volume"),
        (live, ["--set", "journal.existingClaim=c"], "journal: expected the kind of volume"),
        (without, [], "journal: expected the kind of volume"),
        (without, ["--set", "journal.volume=emptyDir,journal.size=64Gi"], None),
        (without, ["--set", "journal.existingClaim=c"], None),
    ]:
        with Cluster(checks.options.scratch, found) as cluster:
            out = render(cluster, *arguments)
        looked_at += 1
        if refusal is None and out.returncode:
            faults.append(f"{arguments}: {out.stderr}")
        elif refusal and (refusal not in out.stderr or command not in out.stderr):
            faults.append(f"{arguments}: expected {refusal!r} and {command!r}, but found {out.stderr.strip()!r}")
    by_helm = {"manager": "helm", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {}}}}
    by_helm_3 = by_helm | {"operation": "Update"}
    scaled = {"manager": "kube-controller-manager", "operation": "Update", "subresource": "scale"}
    scaled |= {"fieldsV1": {"f:spec": {"f:replicas": {}}}}
    status = {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:status": {"f:replicas": {}}}}
    for fields, expected in [
        # Autoscaling is switched on, or has changed nothing yet.
        ([by_helm, status], 3),
        ([by_helm, scaled, status], None),
        ([by_helm_3, status], 3),
        ([by_helm_3, scaled, status], 3),
    ]:
        metadata = live["metadata"] | {"managedFields": fields}
        with Cluster(checks.options.scratch, live | {"metadata": metadata, "spec": live["spec"] | {"replicas": 3}}) as cluster:
            out = render(cluster, "--set", "autoscaling.enabled=true")
        looked_at += 1
        found = out.stderr if out.returncode else Release(out.stdout).one("StatefulSet")["spec"].get("replicas")
        if found != expected:
            faults.append(f"expected {expected} replicas over three with {fields}, but found {found}")
    with Cluster(checks.options.scratch, kinds={"security.openshift.io/v1": {}}) as cluster:
        out = render(cluster)
    if out.returncode or any(user_of(pod) for pod in Release(out.stdout).pods()):
        faults.append(f"expected no user on OpenShift, but found {out.stdout[-500:]}{out.stderr}")
    checks.report("what the chart reads of the cluster", faults, looked_at + 1)


def check_rendered(checks):
    """Each fact of RENDERED."""
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda row: checks.render(VERSIONS[-1], *LEAST, *row[1]), RENDERED))
    faults = []
    for (fact, arguments, holds), out in zip(RENDERED, outs):
        if out.returncode:
            faults.append(f"{fact}: {arguments}: {out.stderr}")
        elif not holds(Release(out.stdout)):
            faults.append(f"{fact}: not so with {arguments}")
    checks.report("what each value does", faults, len(RENDERED))


def golden_texts(rendered):
    """What lies in tests/deploy/golden: each ci file at the newest version, and one at the oldest."""
    texts = {f"{name}.yaml": text for (name, version), text in rendered.items() if version == VERSIONS[-1]}
    if ("stdout", VERSIONS[0]) in rendered:
        texts[f"stdout-{VERSIONS[0]}.yaml"] = rendered["stdout", VERSIONS[0]]
    # They are thousands of lines and have a check of their own.
    for copy, width in {"files/rules.yaml": 2, "files/dashboard.json": 4}.items():
        lines = (CHART / copy).read_text(encoding="utf-8").split("\n")
        whole = "\n".join(" " * width + line for line in lines)
        texts = {name: text.replace(whole, f"{' ' * width}({copy})") for name, text in texts.items()}
    return texts


def check_golden(checks, rendered):
    """Nothing changes in what is rendered without somebody having looked at it."""
    faults = []
    texts = golden_texts(rendered)
    for name in sorted(set(texts) | {path.name for path in GOLDEN.glob("*.yaml")}):
        path = GOLDEN / name
        if name not in texts or not path.exists():
            faults.append(f"{name}: expected it both rendered and in tests/deploy/golden; run tests/deploy/chart --refresh")
        elif path.read_text(encoding="utf-8") != texts[name]:
            (Path(checks.options.scratch) / name).write_text(texts[name], encoding="utf-8")
            diff = checks.run("diff", "-u", path, Path(checks.options.scratch) / name).stdout
            faults.append(f"{name}; if this is meant, run tests/deploy/chart --refresh\n" + "\n".join(diff.splitlines()[:40]))
    checks.report("what is rendered is as in tests/deploy/golden", faults, len(texts))


def configuration(text):
    """The configuration file in rendered text."""
    maps = [document for document in documents(text) if "bridge.toml" in document.get("data", {})]
    return maps[0]["data"]["bridge.toml"]


def make_files(tree, scratch):
    """The files that a configuration names, with something in them that fits."""
    for key, value in tree.items():
        for table in [value] if isinstance(value, dict) else value if isinstance(value, list) else []:
            if isinstance(table, dict):
                make_files(table, scratch)
        if not key.endswith("_file"):
            continue
        path = Path(value)
        path.parent.mkdir(parents=True, exist_ok=True)
        if key in PEM:
            path.write_bytes((scratch / PEM[key]).read_bytes())
            # A Secret of this type has all three.
            (path.parent / "ca.crt").write_bytes((scratch / "ca.crt").read_bytes())
        else:
            # Each its own: a token stands in one place only.
            secret = "amqp://user:password@host:5672/%2f" if key == "url_file" else f"secret-{path.name}"
            path.write_text(f"{secret}\n", encoding="utf-8")


def check_configuration(checks, rendered):
    """The program itself takes what the chart makes of the values."""
    scratch = Path(checks.options.scratch)
    made = checks.run(checks.options.kube_check, "certificate", scratch)
    faults, looked_at = [made.stderr] if made.returncode else [], 0
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SENDBIRD_BRIDGE_")}
    for name, text in golden_texts(rendered).items():
        looked_at += 1
        home = scratch / "root" / name
        toml = configuration(text)
        for place in ("/run/secrets/", "/etc/", "/var/lib/"):
            toml = toml.replace(f'"{place}', f'"{home}{place}')
        home.mkdir(parents=True)
        make_files(tomllib.loads(toml), scratch)
        (home / "bridge.toml").write_text(toml, encoding="utf-8")
        out = checks.run(checks.options.bridge, "config", "check", "--config", home / "bridge.toml", env=clean)
        if out.returncode:
            faults.append(f"{name}: {out.stdout}{out.stderr}")
    checks.report("sendbird-bridge config check takes each configuration", faults, looked_at)


def workload(text, kind):
    """The first object of a kind, and its container."""
    found = next(document for document in documents(text) if document["kind"] == kind)
    spec = found["spec"] if kind == "Pod" else found["spec"]["template"]["spec"]
    return found, spec["containers"][0]


def free_port():
    """A port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(url):
    """The status of a GET, or why there was none. As the kubelet does, without a look at the certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)


def live_faults(checks, name, text):
    """Runs a pod's program with its configuration, its probes against it, and the test pod's program."""
    home = Path(checks.options.scratch) / "root" / f"{name}.yaml"
    ports = {"webhook": free_port(), "admin": free_port()}
    env = {key: value for key, value in os.environ.items() if not key.startswith("SENDBIRD_BRIDGE_")}
    _, container = workload(text, "StatefulSet")
    given = {item["name"]: item["value"].replace("/etc/", f"{home}/etc/", 1) for item in container["env"]}
    Path(given["SENDBIRD_BRIDGE_CONFIG"]).parent.mkdir(parents=True, exist_ok=True)
    Path(given["SENDBIRD_BRIDGE_CONFIG"]).write_bytes((home / "bridge.toml").read_bytes())
    both = configuration_table(text)["server"]["listen"].startswith("[::]:")
    host = "[::]" if both else "127.0.0.1"
    env |= given | {
        "SENDBIRD_BRIDGE_SERVER__LISTEN": f"{host}:{ports['webhook']}",
        "SENDBIRD_BRIDGE_ADMIN__LISTEN": f"{host}:{ports['admin']}",
        "SENDBIRD_BRIDGE_ACCESS__NETWORKS": "127.0.0.0/8,::1/128",
    }
    faults = []
    with open(home / "log", "w+", encoding="utf-8") as log:
        bridge = subprocess.Popen([checks.options.bridge, *container["args"]], env=env, stdout=log, stderr=log)
        try:
            gets = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
            urls = {
                probe: f"{get['scheme'].lower()}://127.0.0.1:{ports[get['port']]}{get['path']}" for probe, get in gets.items()
            }
            patience = time.monotonic() + 60
            while answer(urls["readinessProbe"]) != 200 and bridge.poll() is None and time.monotonic() < patience:
                time.sleep(0.05)
            faults += [f"{probe} {url}: found {answer(url)}" for probe, url in urls.items() if answer(url) != 200]
            six = urls["readinessProbe"].replace("127.0.0.1", "[::1]")
            if both and answer(six) != 200:
                faults.append(f"{six}: found {answer(six)}")
            if path := configuration_table(text)["server"].get("health_path"):
                health = urls["readinessProbe"].replace(str(ports["admin"]), str(ports["webhook"])).replace("/readyz", path)
                faults += [f"{health}: found {answer(health)}"] if answer(health) != 200 else []
            faults += deliver(checks, text, home, ports)
            admin = configuration_table(text)["admin"]["token_file"]
            scheme = gets["readinessProbe"]["scheme"].lower()
            tail = checks.run(
                checks.options.bridge, "tail", "--no-follow", "--url", f"{scheme}://localhost:{ports['admin']}",
                "--token-file", f"{home}{admin}", env=env | {"SSL_CERT_FILE": f"{checks.options.scratch}/ca.crt"},
            )
            if tail.stdout.count("com.sendbird.calls.direct_call.dial") != 1:
                faults.append(f"expected one event in the feed, but found {tail.stdout}{tail.stderr}")
        finally:
            bridge.terminate()
            bridge.wait(timeout=60)
        if bridge.returncode or faults:
            log.seek(0)
            faults.append(f"exit status {bridge.returncode}; its log: {log.read()[-2000:]}")
    return [f"{name}: {fault}" for fault in faults]


def configuration_table(text):
    """The configuration file, parsed."""
    return tomllib.loads(configuration(text))


def deliver(checks, text, home, ports):
    """What the test pod does, with the Service's name replaced by the address."""
    _, container = workload(text, "Pod")
    values = {}
    for item in container.get("env") or []:
        key = item["valueFrom"]["secretKeyRef"]["key"]
        values[item["name"]] = (home / "run/secrets/sendbird-bridge" / key).read_text(encoding="utf-8").strip()
    arguments = []
    for argument in container["args"]:
        # As the kubelet does.
        argument = re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], argument)
        argument = re.sub(r"(https?)://[^/]+", rf"\1://localhost:{ports['webhook']}", argument)
        # The certificate that it shows is in a Secret of its own, which no configuration names.
        if found := re.fullmatch(r"--(?:cert|key)-file=/(.*/(tls\.\w+))", argument):
            (home / found[1]).parent.mkdir(parents=True, exist_ok=True)
            (home / found[1]).write_bytes((Path(checks.options.scratch) / found[2]).read_bytes())
        arguments.append(argument.replace("=/run/", f"={home}/run/"))
    out = checks.run(checks.options.bridge, *arguments)
    return [f"helm test's delivery: {out.stdout}{out.stderr}"] if out.returncode else []


def check_live(checks, rendered):
    """The pod's program starts with the pod's configuration, is ready, and takes the test pod's delivery."""
    faults, names = [], ("stdout", "everything", "tls", "mtls", "dualstack", "alb")
    for name in names:
        if (name, VERSIONS[-1]) in rendered:
            faults += live_faults(checks, name, rendered[name, VERSIONS[-1]])
    checks.report("the pods' program runs, passes its probes, and helm test's delivery is stored", faults, len(names))


def check_least(checks):
    """Secret and sink alone are enough, and the configuration decides the annotation that makes new pods."""
    sums = {}
    faults = []
    for window in ("1h", "2h"):
        out = checks.render(
            VERSIONS[-1], *LEAST, "--set", f"config.sinks.out.type=stdout,config.dedup.window={window}"
        )
        if out.returncode:
            faults.append(out.stderr)
            continue
        sets = [document for document in documents(out.stdout) if document["kind"] == "StatefulSet"]
        sums[window] = sets[0]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
    if len(set(sums.values())) != 2:
        faults.append(f"expected another checksum for another configuration, but found {sums}")
    checks.report("a Secret and a sink are enough; a changed configuration makes new pods", faults, len(sums))


def bridge_schema(checks):
    """The program's own schema of `config`, under names of its own, closed, and with clear messages for sinks."""
    schema = json.loads(checks.run(checks.options.bridge, "schema", "config").stdout)

    def walk(node):
        if isinstance(node, dict):
            return {
                key: value.replace("#/$defs/", "#/$defs/bridge.") if key == "$ref" else walk(value)
                for key, value in node.items()
                # Not the notes (defaults, number formats), but a property may have the name of one.
                if key not in ("default", "format") or isinstance(value, dict) and "description" in value
            }
        return [walk(item) for item in node] if isinstance(node, list) else node

    defs = {f"bridge.{name}": walk(part) for name, part in schema["$defs"].items()}
    # What can be given as a file instead is not required itself; the program says it better when both are missing.
    for part in defs.values():
        kept = [key for key in part.get("required", []) if f"{key}_file" not in part["properties"]]
        part.pop("required", None)
        if kept:
            part["required"] = kept
    # oneOf would say what is wrong with each of the types that were not meant.
    sink = defs["bridge.Sink"]
    kinds = {kind["properties"]["type"]["const"]: kind for kind in sink.pop("oneOf")}
    for kind in kinds.values():
        kind["properties"] |= sink["properties"]
        kind["additionalProperties"] = False
    sink["properties"] = {"type": {"enum": sorted(kinds)}}
    sink["required"] = ["type"]
    sink["allOf"] = [
        {"if": {"required": ["type"], "properties": {"type": {"const": name}}}, "then": kind}
        for name, kind in sorted(kinds.items())
    ]
    top = {"type": "object", "additionalProperties": False, "properties": walk(schema["properties"])}
    return {"bridge": top, **defs}


def check_schema(checks):
    """The bridge's part of values.schema.json is the program's."""
    written = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    fresh = bridge_schema(checks)
    faults = []
    if written.get("$defs") != fresh:
        faults.append("$defs in values.schema.json are not this program's; run tests/deploy/chart --refresh")
    checks.report("values.schema.json knows every key of the configuration", faults, len(fresh))


def leaves(tree, path=""):
    """The dotted names of all values."""
    for key, value in tree.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and not name.startswith("config."):
            yield from leaves(value, f"{name}.")
        else:
            yield name


def check_readme(checks):
    """Each value is in the README's table with its default, and nothing else is."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Za-z.]+)` \| `([^`]*)` \|", readme, re.M))
    faults = []
    # Maps whose keys the user chooses are one value.
    whole = {"resources", "config", "dashboard.labels"} | {f"probes.{name}" for name in values["probes"]}
    for name in leaves(values):
        root = next((whole_name for whole_name in whole if name == whole_name or name.startswith(whole_name + ".")), name)
        default = values
        for part in root.split("."):
            default = default[part]
        if root not in rows:
            faults.append(f"{root}: expected it in README.md's table, but found it not there")
        elif root != "config" and yaml.safe_load(rows[root]) != default:
            faults.append(f"{root}: its default is {json.dumps(default)}, but README.md says {rows[root]}")
        rows.setdefault(root, "")
        whole.add(root)
    for name in set(rows) - whole:
        faults.append(f"{name}: is in README.md's table, but not in values.yaml")
    checks.report("README.md has every value with its default", faults, len(rows))


def check_quotes(checks):
    """What README.md tells people to look for in the log is what the program writes."""
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    source = (ROOT / "src/app/reload.rs").read_text(encoding="utf-8")
    quoted = set(re.findall(r"grep '([^']+)'", readme))
    faults = [f"expected {text!r} in src/app/reload.rs, but found it not there" for text in quoted if f'"{text}"' not in source]
    checks.report("README.md quotes the log", faults, len(quoted))


def check_versions(checks):
    """The chart is for the program of this repository."""
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    faults = [] if cargo == chart else [f"appVersion: expected {cargo}, but found {chart}"]
    checks.report("appVersion is the program's", faults, 1)


def check_secrets(checks):
    """The chart refuses every key that the program takes for a secret."""
    source = (ROOT / "src/config/layers.rs").read_text(encoding="utf-8")
    secrets = set(re.findall(r'"(\w+)"', re.search(r"const SECRETS: .*?=\s*\[(.*?)\]", source, re.S)[1]))
    helpers = (CHART / "templates/_helpers.tpl").read_text(encoding="utf-8")
    refused = set(re.findall(r'"(\w+)"', re.search(r"has \$key \(list (.*?)\)", helpers)[1]))
    # A name is hidden, but may lie in a ConfigMap.
    faults = [f"{key}: expected it among the refused keys in _helpers.tpl" for key in secrets - refused - {"username", "client_id"}]
    checks.report("every key that is a secret is refused", faults, len(secrets))


def check_notes(checks):
    """What helm says after an installation: the URL, and the warnings."""
    rows = [
        ([], "Nothing does yet"),
        (["--set", "ingress.enabled=true,ingress.host=h.example.com"], "https://h.example.com/webhooks/sendbird"),
        (
            ["--set", "ingress.enabled=true,ingress.host=h.example.com"]
            + ["--set", "config.access.path_secret_file=/run/secrets/sendbird-bridge/p"],
            "https://h.example.com/webhooks/sendbird/<path secret>",
        ),
        (
            ["--set", "httpRoute.enabled=true,httpRoute.parentRefs[0].name=g,httpRoute.hostnames={r.example.com}"],
            "https://r.example.com/webhooks/sendbird",
        ),
        (
            ["--set", "ingress.enabled=true,ingress.host=h.example.com,ingress.extraHosts[0].host=i.example.com"],
            "https://i.example.com/webhooks/sendbird",
        ),
        (["--set", "journal.volume=emptyDir"], "LOST with its pod"),
        ([], "No sink is configured"),
        (["--set", "config.access.open=true"], "ANYBODY"),
        ([], "kubectl create secret generic s "),
        ([], "curl --no-buffer --header"),
        ([], "helm test release --namespace calls --logs"),
        (["--set", "tls.server.secretName=t,tls.server.clientCaKey=ca.crt"], "There is no helm test: senders need"),
        (["--set", "test.enabled=false"], "There is no helm test: test.enabled"),
        (
            ["--set", "config.server.proxy_protocol=true,config.access.trusted_proxies={10.0.0.0/8}"],
            "There is no helm test: with server.proxy_protocol",
        ),
    ]
    faults = []
    for arguments, expected in rows:
        out = checks.run(
            checks.options.helm, "install", "release", CHART, "--dry-run=client", *LEAST, "--namespace", "calls", *arguments
        )
        notes = out.stdout.split("NOTES:")[-1]
        if out.returncode or expected not in notes:
            faults.append(f"{arguments}: expected {expected!r} in the notes, but found {notes[-2000:]}{out.stderr}")
        if ("helm.sh/hook: test" in out.stdout) != ("helm test release" in notes):
            faults.append(f"{arguments}: expected a test exactly where the notes tell of one")
    checks.report("the notes say what to do next", faults, len(rows))


def refresh(checks):
    """Writes what is derived."""
    path = CHART / "values.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    schema["$defs"] = bridge_schema(checks)
    path.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
    rendered = render_all(checks)
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name, text in golden_texts(rendered).items():
        (GOLDEN / name).write_text(text, encoding="utf-8")


def main():
    """Runs all checks, or refreshes."""
    parser = argparse.ArgumentParser()
    for name in ("helm", "kube-check", "bridge", "scratch"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--refresh", action="store_true")
    checks = Checks(parser.parse_args())
    started = time.monotonic()
    if checks.options.refresh:
        refresh(checks)
        return int(checks.failed > 0)
    rendered = render_all(checks)
    check_schemas(checks, rendered)
    check_types(checks, rendered)
    check_pods(checks, rendered)
    check_configuration(checks, rendered)
    check_live(checks, rendered)
    check_golden(checks, rendered)
    check_rendered(checks)
    check_cluster(checks)
    check_wrong(checks)
    check_secrets(checks)
    check_least(checks)
    check_links(checks)
    check_schema(checks)
    check_readme(checks)
    check_quotes(checks)
    check_notes(checks)
    check_versions(checks)
    print(f"{checks.count - checks.failed} passed, {checks.failed} failed ({time.monotonic() - started:.0f} s)")
    return int(checks.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
