"""Owns: a release of the chart in a namespace of its own, as its users have it: installed by helm, watched, and put under load.

Promises: `Release` installs and removes it; `Load` is a sender outside the pods, `Watch` the times at which the Service had how
many pods. The namespace enforces the restricted Pod Security Standard.
"""

import contextlib
import copy
import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import api
import brokers
import kubernetes
from objects import warnings_of

CHART = Path(__file__).resolve().parents[3] / "deploy/helm/sendbird-bridge"
SENDER = Path(__file__).with_name("sender.py")
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
TOKEN = "token-one"
ADMIN_TOKEN = "admin-token-0123456789abcdef"
SECRET = {"api-tokens": TOKEN, "admin-token": ADMIN_TOKEN, "rabbitmq-url": brokers.RABBITMQ_URL}
IMAGE = {"repository": kubernetes.IMAGE.rpartition(":")[0], "tag": kubernetes.IMAGE.rpartition(":")[2], "pullPolicy": "Never"}
READY_SECONDS = 90


class Release:
    """A release named `calls`."""

    name = "calls"
    full = "calls-sendbird-bridge"

    def __init__(self, cluster, namespace, values=None, secret=None):
        self.cluster = cluster
        self.namespace = namespace
        self.values = merged({"image": IMAGE, "secret": {"name": "sendbird-bridge"}}, values or {})
        self.path = f"/api/v1/namespaces/{namespace}"
        self.workload = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{self.full}"
        self.revision = 0
        cluster.make("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": RESTRICTED}})
        if secret is not False:
            self.make_secret("sendbird-bridge", secret or SECRET)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.cluster.ask("DELETE", f"/api/v1/namespaces/{self.namespace}")

    def make_secret(self, name, data, kind="Opaque"):
        """A Secret of the namespace."""
        self.cluster.make(f"{self.path}/secrets", {"metadata": {"name": name}, "type": kind, "stringData": data})

    # ---- helm and kubectl --------------------------------------------------------------------------------------------

    def helm(self, command, *arguments, refused=None):
        """What helm says. With `refused`, it must fail, and say that."""
        done = self.cluster.helm(command, *arguments, "--namespace", self.namespace)
        said = done.stdout + done.stderr
        if (done.returncode != 0) != (refused is not None) or (refused or "") not in said:
            raise Unexpected(f"helm {command}: expected {refused or 'success'}, but found {said[-3000:]}")
        warnings = warnings_of(done.stderr)
        if warnings:
            raise Unexpected(f"helm {command}: expected no warning, but found {warnings}")
        return said

    def install(self, ready=True, *arguments):
        """Installs it; what helm says."""
        said = self.helm("install", self.name, CHART, "--values", self.write_values(), *arguments)
        if ready:
            self.await_rollout()
        return said

    def upgrade(self, values=None, ready=True, *arguments, refused=None):
        """Upgrades it with these values besides those that it has; what helm says."""
        self.values = merged(self.values, values or {})
        said = self.helm("upgrade", self.name, CHART, "--values", self.write_values(), *arguments, refused=refused)
        if ready:
            self.await_rollout()
        return said

    def write_values(self):
        """The file of the values."""
        path = self.cluster.scratch / f"values-{self.namespace}.json"
        path.write_text(json.dumps(self.values), encoding="utf-8")
        return path

    def await_rollout(self, seconds=READY_SECONDS):
        """Waits as the README says; how long it took."""
        begun = time.monotonic()
        self.kubectl("rollout", "status", f"statefulset/{self.full}", f"--timeout={seconds}s")
        return time.monotonic() - begun

    def kubectl(self, *arguments, stdin=None, status=0):
        """What kubectl writes to standard output."""
        # Before the arguments, because after `--` they are the command's.
        done = self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)
        if status is not None and done.returncode != status:
            shown = " ".join(str(part) for part in arguments)
            said = (done.stdout + done.stderr)[-3000:]
            raise Unexpected(f"kubectl {shown}: expected exit status {status}, but found {done.returncode}: {said}")
        return done.stdout

    def bridge(self, pod, *arguments, status=0):
        """What a command of the bridge in the pod writes to standard output."""
        return self.kubectl("exec", pod, "--container", "bridge", "--", "/sendbird-bridge", *arguments, status=status)

    # ---- pods --------------------------------------------------------------------------------------------------------

    def pods(self):
        """Its pods, but not that of the test."""
        selector = "labelSelector=app.kubernetes.io/component=bridge"
        return self.cluster.get(f"{self.path}/pods?{selector}")["items"]

    def pod(self, number=0):
        """The name of a pod."""
        return f"{self.full}-{number}"

    def found(self, number=0):
        """A pod as it is now."""
        return self.cluster.get(f"{self.path}/pods/{self.pod(number)}")

    def ready(self):
        """How many pods are Ready."""
        return sum(kubernetes.is_true(pod, "Ready") for pod in self.pods())

    def await_ready(self, count, seconds=READY_SECONDS):
        """Waits until exactly so many pods are there, all of them Ready; how long it took."""

        def whole():
            pods = [pod for pod in self.pods() if "deletionTimestamp" not in pod["metadata"]]
            return len(pods) == count and all(kubernetes.is_true(pod, "Ready") for pod in pods)

        return self.cluster.await_true(f"{count} pods of {self.namespace} are Ready", whole, seconds)

    def signal(self, name, number=0):
        """Sends a signal to the bridge in a pod."""
        self.cluster.node.output("kill", f"-{name}", self.cluster.process(self.container(number)))

    def container(self, number=0):
        """The bridge's container in a pod."""
        status = self.found(number)["status"]["containerStatuses"]
        return next(each["containerID"] for each in status if each["name"] == "bridge")

    def restarts(self, number=0):
        """How often the bridge of a pod was restarted."""
        return sum(each["restartCount"] for each in (self.found(number) or {}).get("status", {}).get("containerStatuses", []))

    # ---- deliveries --------------------------------------------------------------------------------------------------

    def url(self, path="/webhooks/sendbird"):
        """Where deliveries go: the Service."""
        service = self.cluster.get(f"{self.path}/services/{self.full}")
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}{path}"

    def await_service(self):
        """Waits until kube-proxy has seen the Service's pods, which takes it up to a second after they are Ready."""
        # The bridge answers a path that it does not have by 404.
        url = self.url("/")
        self.cluster.await_true(f"{url} answers", lambda: self.cluster.http(url, 0.3) != 0, 20)
        time.sleep(1)

    def load(self, tag, rate=50, tries=1, keep=False, token=TOKEN, within=()):
        """A sender, for `with`: it sends until that ends. `within`: what runs it in a pod's network, as `Guest.inside` says."""
        self.await_service()
        return Load(self.url(), tag, rate, tries, keep, token, within)

    def watch(self):
        """The Service's pods, for `with`."""
        return Watch(self)


class Load:
    """A running sender. `report` is there when it has ended."""

    def __init__(self, url, tag, rate, tries, keep, token, within):
        command = [*within, sys.executable, "-B", SENDER, url, token, "--tag", tag, "--rate", rate, "--seconds", 1200, "--tries", tries]
        command += ["--keep"] if keep else []
        self.command = [str(part) for part in command]
        self.report = None

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exception):
        out, _ = self.process.communicate()
        if exception[0] is None:
            self.report = json.loads(out)

    def lost(self):
        """How many deliveries no try of which was answered 200."""
        return sum(count for outcome, count in self.report["last"].items() if outcome != "200")

    def sent(self):
        """How many deliveries there were."""
        return sum(self.report["last"].values())

    def figures(self):
        """The outcome in a line."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.report["first"].items()))
        lost = f", {self.lost()} lost" if self.lost() else ""
        failed = f", between {self.report['failed_from']} and {self.report['failed_to']} s" if self.failed() else ""
        return f"{self.sent()} sent: {outcomes}{failed}{lost}, slowest {self.report['slowest_ms']} ms"

    def failed(self):
        """How many first tries were not answered 200."""
        return sum(count for outcome, count in self.report["first"].items() if outcome != "200")


class Watch:
    """When the Service had which ready pods: read as the changes come."""

    def __init__(self, release):
        self.release = release
        self.changes = []

    def __enter__(self):
        cluster = self.release.cluster
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.release.namespace}/endpointslices"
        path += f"?watch=1&labelSelector=kubernetes.io/service-name={self.release.full}"
        headers = {"Authorization": f"Bearer {api.TOKEN}"}
        request = urllib.request.Request(f"{cluster.url}{path}", headers=headers)
        self.begun = time.monotonic()
        self.answer = urllib.request.urlopen(request, context=cluster.tls, timeout=600)
        threading.Thread(target=self.read, daemon=True).start()
        return self

    def read(self):
        """Notes each change."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for line in self.answer:
                endpoints = json.loads(line)["object"].get("endpoints") or []
                ready = {each["targetRef"]["name"] for each in endpoints if each["conditions"].get("ready")}
                self.changes.append((time.monotonic(), ready))

    def __exit__(self, *_exception):
        self.ended = time.monotonic()
        # Its reader may be waiting for the next change.
        with contextlib.suppress(OSError, AttributeError):
            self.answer.fp.raw._sock.shutdown(2)

    def without(self):
        """For how many seconds the Service had no pod."""
        times = [*self.changes, (self.ended, {"end"})]
        return sum(later[0] - now[0] for now, later in zip(times, times[1:]) if not now[1])

    def await_change(self, since, condition, seconds=180):
        """Waits for a change since that moment of which this holds; how many seconds after the moment it was."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for at, ready in list(self.changes):
                if at >= since and condition(ready):
                    return at - since
            time.sleep(0.05)
        raise TimeoutError(f"expected within {seconds} s another set of ready pods than {self.changes[-1:]}")


class Unexpected(Exception):
    """A fault that ends a check."""


def merged(values, more):
    """Both values; `more` goes before."""
    values = copy.deepcopy(values)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = merged(values[key], value) if both else copy.deepcopy(value)
    return values
