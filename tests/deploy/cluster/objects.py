"""Owns: what a real API server of Kubernetes must say to the Helm chart. Run by check-objects, which brings the tools.

Promises: one line for each check ("ok", or "FAILED" with the faults below it); exit status 1 if one failed. A check that
looked at nothing fails. The server and its etcd end with this program.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

import api
from chart_checks import CHART, Checks, documents, free_port, label, name_of

# A lone equals sign, which stands for itself in the definitions.
yaml.SafeLoader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))

# What a pod may not be here: the same for every release, so that nobody's pods are admitted because nothing is refused.
FORBIDDEN = {
    "metadata": {"name": "forbidden"},
    "spec": {"hostNetwork": True, "containers": [{"name": "c", "image": "c"}]},
}


class Server(api.Api):
    """A running API server: asked by its own HTTP API, and by helm."""

    def __init__(self, options, stack):
        self.scratch = options.scratch
        (client, peer, port) = (free_port() for _ in range(3))
        super().__init__(f"https://127.0.0.1:{port}", options.scratch / "certificates")
        etcd = f"http://127.0.0.1:{client}"
        self.start(
            stack, "etcd", options.server / "etcd",
            f"--data-dir={self.scratch}/etcd", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}", "--unsafe-no-fsync",
        )  # fmt: skip
        key = self.scratch / "service-account.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = self.scratch / "tokens.csv"
        tokens.write_text(api.TOKENS, encoding="utf-8")
        self.process = self.start(
            stack, "kube-apiserver", options.server / "kube-apiserver",
            f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--cert-dir={self.scratch}/certificates", f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24,fd00:10::/112", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
        )  # fmt: skip
        self.await_ready()
        self.kubeconfig = self.scratch / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(self.access()), encoding="utf-8")

    def start(self, stack, name, *command):
        """A process that ends with us; what it says is in a file."""
        log = stack.enter_context(open(self.scratch / f"{name}.log", "wb"))
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    def await_ready(self):
        """Until the server says that it is ready, for a minute and a half."""
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            if self.is_ready():
                return
            time.sleep(0.2)
        log = (self.scratch / "kube-apiserver.log").read_text(encoding="utf-8", errors="replace")
        sys.exit("the API server is not ready; the last that it said:\n" + "\n".join(log.splitlines()[-20:]))


def define(server, folder):
    """Makes the objects known that are not Kubernetes' own, unless they are; how many kinds of them."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    names = []
    for file in sorted(folder.glob("*.yaml")):
        for definition in documents(file.read_text(encoding="utf-8")):
            if definition["kind"] == "CustomResourceDefinition":
                names.append(definition["metadata"]["name"])
                if server.ask("GET", f"{path}/{names[-1]}")[0] != 200:
                    server.make(path, definition)
    until = time.monotonic() + 60
    for name in names:
        while not is_established(json.loads(server.ask("GET", f"{path}/{name}")[1])):
            if time.monotonic() > until:
                sys.exit(f"the definition {name} is not established")
            time.sleep(0.1)
    return len(names)


def is_established(definition):
    """Whether the server takes objects of this kind."""
    conditions = definition.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def warnings_of(text):
    """What helm passes on of the server's warnings."""
    # GKE looks for this annotation, not for a class.
    known = "kubernetes.io/ingress.class"
    return [line for line in text.splitlines() if "warning" in line.lower() and known not in line]


def install(checks, server, path, faults, refusals):
    """Installs, upgrades and removes the chart with these values; its objects, and how many pods were looked at. What helm
    meets goes to faults, what pods meet to refusals.
    """
    namespace = f"ci-{name_of(path)}"
    restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    server.make("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": restricted}})
    # A controller would.
    server.make(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})

    def helm(*arguments):
        common = ["--namespace", namespace, "--kubeconfig", server.kubeconfig]
        done = checks.run(checks.options.helm, *arguments, *common)
        said = warnings_of(done.stderr)
        if done.returncode or said:
            faults.append(f"{path.name}: helm {arguments[0]}: {done.stdout[-500:] if done.returncode else ''}{done.stderr}")
        return done.stdout

    helm("install", "release", CHART, "--values", path)
    objects = documents(helm("get", "manifest", "release"))
    hooks = documents(helm("get", "hooks", "release"))
    # Nothing that cannot be changed is changed by a new value, and by none at all.
    helm("upgrade", "release", CHART, "--values", path)
    helm("upgrade", "release", CHART, "--values", path, "--set", "podAnnotations.changed=yes")
    pods = [(hook["metadata"], hook["spec"]) for hook in hooks if hook["kind"] == "Pod"]
    for workload in (document for document in objects if document["kind"] == "StatefulSet"):
        template = workload["spec"]["template"]
        # The volumes of claims are added by a controller.
        claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
        spec = {**template["spec"], "volumes": template["spec"]["volumes"] + volumes}
        pods.append(({**template["metadata"], "name": "pod"}, spec))
    for metadata, spec in pods:
        about = {key: metadata[key] for key in ("name", "labels", "annotations") if metadata.get(key)}
        pod = {"metadata": about, "spec": {key: value for key, value in spec.items() if key != "priorityClassName"}}
        status, answer, warnings = server.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
        if status != 201 or warnings:
            refusals.append(f"{path.name}: the pod {about['name']}: {status} {answer[:2000]} {warnings}")
    refused = server.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", FORBIDDEN)
    if refused[0] != 403:
        refusals.append(f"{path.name}: expected a pod of the host's network to be forbidden, but found {refused[0]}")
    helm("uninstall", "release")
    return objects, len(pods)


def check_upgrades(checks, server):
    """What must not happen at an upgrade: a changed size of the journal that fails with no advice, or replicas that are stopped
    because autoscaling begins. The faults.
    """
    server.make("/api/v1/namespaces", {"metadata": {"name": "calls"}})
    path = "/apis/apps/v1/namespaces/calls/statefulsets/release-sendbird-bridge"
    faults = []

    def helm(*arguments, refusal=None):
        done = checks.run(
            checks.options.helm, *arguments, "--namespace", "calls", "--kubeconfig", server.kubeconfig
        )
        if (done.returncode != 0) != (refusal is not None) or (refusal or "") not in done.stderr:
            faults.append(f"helm {arguments}: expected {refusal or 'success'}, but found {done.stderr[-1000:]}")

    def upgrade(*values, refusal=None):
        helm("upgrade", "release", CHART, "--set", "secret.name=s,replicas=3", *values, refusal=refusal)

    def expect(what, expected):
        spec = json.loads(server.ask("GET", path)[1])["spec"]
        size = spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
        if (spec["replicas"], size) != expected:
            faults.append(f"{what}: expected {expected}, but found {(spec['replicas'], size)}")

    helm("install", "release", CHART, "--set", "secret.name=s,replicas=3")
    larger = ["--set", "journal.size=64Gi"]
    upgrade(*larger, refusal="kubectl delete statefulset release-sendbird-bridge --namespace calls --cascade=orphan")
    expect("a refused upgrade", (3, "16Gi"))
    # No controller runs that would take the pods' owner away, as it does for --cascade=orphan; here are no pods.
    server.ask("DELETE", f"{path}?propagationPolicy=Background")
    upgrade(*larger)
    expect("a StatefulSet that is made anew", (3, "64Gi"))
    scaled = [*larger, "--set", "autoscaling.enabled=true"]
    upgrade(*scaled)
    expect("autoscaling is switched on", (3, "64Gi"))
    upgrade(*scaled, "--set-string", "podAnnotations.changed=1")
    expect("an upgrade before the autoscaler has changed anything", (3, "64Gi"))
    # As the autoscaler does.
    scale = json.loads(server.ask("GET", f"{path}/scale")[1])
    scale["spec"]["replicas"] = 5
    server.ask("PUT", f"{path}/scale?fieldManager=kube-controller-manager", scale)
    upgrade(*scaled, "--set-string", "podAnnotations.changed=2")
    expect("an upgrade after the autoscaler has", (5, "64Gi"))
    scale = json.loads(server.ask("GET", f"{path}/scale")[1])
    scale["spec"]["replicas"] = 6
    server.ask("PUT", f"{path}/scale?fieldManager=kube-controller-manager", scale)
    upgrade(*scaled, "--set-string", "podAnnotations.changed=3")
    helm("rollback", "release")
    expect("a rollback after that", (6, "64Gi"))
    upgrade(*larger, "--set", "replicas=6")
    expect("autoscaling is switched off", (6, "64Gi"))
    helm("uninstall", "release")
    return faults


def main():
    parser = argparse.ArgumentParser()
    for name in ("--server", "--scratch"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--helm", required=True)
    options = parser.parse_args()
    checks = Checks(options)
    with contextlib.ExitStack() as stack:
        server = Server(options, stack)
        version = json.loads(server.ask("GET", "/version")[1])["gitVersion"]
        defined = define(server, options.server / "crds")
        print(f"the API server is {version}, and knows {defined} more kinds of objects")
        faults, refusals, kinds, pods = [], [], set(), 0
        for path in checks.ci:
            objects, found = install(checks, server, path, faults, refusals)
            kinds.update(document["kind"] for document in objects)
            pods += found
        checks.report("the server takes each release, changed ones too, and helm removes it", faults, len(checks.ci))
        checks.report("pods are admitted under the restricted Pod Security Standard", refusals, pods)
        wanted = {"StatefulSet", "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "HTTPRoute", "PodDisruptionBudget"}
        checks.report("upgrades: another size of the journal, autoscaling", check_upgrades(checks, server), 1)
        checks.report("kinds of objects", [f"none of kind {kind}" for kind in wanted - kinds], len(kinds))
    print(f"{checks.count - checks.failed} passed, {checks.failed} failed")
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
