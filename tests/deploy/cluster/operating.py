"""Owns: the checks of what operators do with a release: the commands of the chart's README and of the runbook, as they are
written there, and Secrets that change.

Promises: a command is taken from the document, so that one that is changed there is run as it then is.
"""

import json
import os
import re
import time

import brokers
import images
from brokers import ROOT
from installing import await_events
from sender import APPLICATION
from release import CHART, TOKEN, Release, Unexpected

RUNBOOK = ROOT / "docs/runbook.md"
# Every command that the runbook's table has: its exit status here, where Sendbird cannot be reached and nothing is stuck, and a
# part of what it says.
COMMANDS = {
    "config check": (0, "configuration OK"),
    "config check --connect": (0, "kafka"),
    "config show": (0, "SENDBIRD_BRIDGE_CONFIG|bridge.toml"),
    "stuck list": (0, ""),
    "stuck show": (1, "no such stuck event"),
    "stuck set-aside": (0, ""),
    "dead-letters list": (0, ""),
    "dead-letters show": (1, "no such dead letter"),
    "dead-letters requeue": (0, ""),
    "dead-letters discard": (1, "no such dead letter"),
    "replay": (0, ""),
    "replay list": (0, ""),
    "journal stats": (0, "events +[1-9]"),
    "journal verify": (0, "OK"),
    "tail": (0, ""),
    "reconcile": (1, ""),
    "reconcile --publish": (1, ""),
    "webhook get": (1, ""),
    "send": (1, ""),
}


class Shell:
    """A shell as an operator has it, at the top of the repository, with kubectl and helm."""

    def __init__(self, world, **variables):
        self.world = world
        tools = world.cluster.scratch / "tools"
        if not tools.exists():
            tools.mkdir()
            (tools / "kubectl").symlink_to(world.cluster.kubectl_program)
            (tools / "helm").symlink_to(world.cluster.helm_program)
        self.env = {
            **os.environ, **variables, "PATH": f"{tools}:{os.environ['PATH']}", "KUBECONFIG": str(world.cluster.kubeconfig),
        }  # fmt: skip

    def run(self, script, status=0, seconds=180):
        """What the commands write to standard output and standard error."""
        done = self.world.cluster.command("bash", "-c", f"cd {ROOT}\n{script}", env=self.env, timeout=seconds)
        said = done.stdout + done.stderr
        if done.returncode != status:
            raise Unexpected(f"{script}\nexpected exit status {status}, but found {done.returncode}: {said[-3000:]}")
        return said


def blocks(path, language):
    """The blocks of a document in this language, without the indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.M | re.S)
    return ["\n".join(line[len(indent) :] for line in text.splitlines()) for indent, text in found]


def block(path, word, language="sh"):
    """The first of these blocks with this word in it."""
    for text in blocks(path, language):
        if word in text:
            return text
    raise Unexpected(f"{path.name}: expected a block with {word!r}, but found none")


def the_readme(world):
    """Following the chart's README from nothing: each command works as written, with a broker of this cluster."""
    readme = CHART / "README.md"
    world.brokers.start("kafka")
    values = block(readme, "# values.yaml", "yaml").replace("kafka.example.com", f"kafka.{brokers.NAMESPACE}.svc")
    home = world.cluster.scratch / "readme"
    home.mkdir()
    (home / "values.yaml").write_text(values)
    version = re.search(r"^appVersion: \"?([^\"\n]+)", (CHART / "Chart.yaml").read_text(), re.M)[1]
    world.cluster.import_image(
        f"registry.example.com/sendbird-bridge:{version}", images.bridge_config(), world.cluster.bridge
    )
    shell = Shell(world, SENDBIRD_API_TOKEN=TOKEN)
    shell.run(block(readme, "create namespace calls"))
    before = sum(world.brokers.events("kafka").values())
    install = block(readme, "helm install calls").replace("values.yaml", f"{home}/values.yaml")
    begun = time.monotonic()
    shell.run(install)
    ready = time.monotonic() - begun
    tested = shell.run(block(readme, "helm test calls"))
    see = block(readme, "port-forward")
    forward, token, curl, tail = [line for line in see.splitlines() if line.strip()][:4]
    program = str(world.cluster.bridge / "sendbird-bridge")
    tail = re.sub(r"^sendbird-bridge", program, tail).replace("tail", "tail --no-follow", 1)
    fed = shell.run(
        f"{forward}\nfor _ in $(seq 50); do curl --silent http://127.0.0.1:9090/livez >/dev/null && break; sleep 0.1; done\n"
        f"{token}\ntimeout 2 {curl}\n{tail}\nstatus=$?\nkill %1\nexit $status"
    )
    world.expect("the test's event, by curl and by tail", 2, fed.count('"com.sendbird.calls.direct_call.dial"'))
    await_events(world, "kafka", before + 1)
    rotation = shell.run(block(readme, "using the renewed secret"), status=1)
    world.expect("renewed secrets of a release that has just begun", "", rotation)
    shell.run("kubectl exec -n calls calls-sendbird-bridge-0 -- /sendbird-bridge dead-letters list")
    world.cluster.ask("DELETE", "/api/v1/namespaces/calls")
    world.expect_true(f"helm test shows its delivery, but found {tested}", "200" in tested)
    return f"Ready {ready:.1f} s after helm install"


def another_size(world):
    """The README's commands for a larger journal, on claims of a class that can grow, restart no pod."""
    readme = CHART / "README.md"
    world.cluster.patch("/apis/storage.k8s.io/v1/storageclasses/local", {"allowVolumeExpansion": True})
    sinks = {"config": {"sinks": {"nats": brokers.SINKS["nats"]}}, "replicas": 2}
    world.brokers.start("nats")
    with Release(world.cluster, "size", sinks) as release:
        release.install()
        before = [pod["metadata"]["uid"] for pod in release.pods()]
        release.values["journal"] = {"size": "64Gi"}
        release.helm("upgrade", release.name, CHART, "--values", release.write_values(),
                     refused="kubectl delete statefulset calls-sendbird-bridge")  # fmt: skip
        script = block(readme, "--cascade=orphan").replace("--namespace calls", "--namespace size")
        values = release.write_values()
        with release.load("size", rate=50) as load:
            Shell(world).run("set -e\n" + script.replace("values.yaml", str(values)))
            release.await_rollout()
            time.sleep(1)
        world.expect("pods", before, [pod["metadata"]["uid"] for pod in release.pods()])
        world.expect("first tries", {"200": load.sent()}, load.report["first"])
        claims = json.loads(release.kubectl("get", "pvc", "--output", "json"))["items"]
        world.expect("sizes", {"64Gi"}, {claim["spec"]["resources"]["requests"]["storage"] for claim in claims})
        return load.figures()


def the_runbook(world):
    """Each command of the runbook's table, as kubectl exec, says what it should."""
    world.brokers.start("kafka")
    rows = re.findall(r"^\| `([^`]+)` \| `(kubectl exec [^`]+)` \|", RUNBOOK.read_text(encoding="utf-8"), re.M)
    world.expect("the commands of the table", sorted(COMMANDS), sorted(name for name, _ in rows))
    config = {"sinks": {"kafka": brokers.SINKS["kafka"]}, "access": {"applications": [APPLICATION]}}
    with Release(world.cluster, "runbook", {"config": config}) as release:
        release.install()
        with release.load("runbook", rate=50) as load:
            time.sleep(2)
        shell = Shell(world, NS="runbook", POD=release.pod())
        for name, command in rows:
            status, part = COMMANDS.get(name, (0, ""))
            try:
                said = shell.run(command.replace("--after 59000", "--after 0"), status)
            except Unexpected as error:
                world.faults.append(f"{name}: {error}")
                continue
            if not re.search(part, said):
                world.faults.append(f"{name}: expected {part}, but found {said[-1000:]}")
        return f"{len(rows)} commands, {load.sent()} events"


def a_renewed_secret(world):
    """A second token in the Secret is accepted by each replica once it has logged so, and not needed before."""
    with Release(world.cluster, "renewed", {"config": {"sinks": {}}, "replicas": 2}) as release:
        release.install()
        readme = block(CHART / "README.md", "using the renewed secret").replace("--namespace calls", "--namespace renewed")
        shell = Shell(world)
        begun = time.monotonic()
        tokens = {"stringData": {"api-tokens": f"{TOKEN}\ntoken-two"}}
        release.kubectl("patch", "secret", "sendbird-bridge", "--patch", json.dumps(tokens))

        def both():
            lines = shell.run(f"{readme} || true").splitlines()
            return len({line.split()[0] for line in lines}) == 2

        world.cluster.await_true("both replicas have logged that they use it", both, 120, pause=1)
        took = time.monotonic() - begun
        with release.load("renewed", rate=20, token="token-two") as load:
            time.sleep(2)
        world.expect("first tries with the second token", {"200": load.sent()}, load.report["first"])
        world.expect("restarts", [0, 0], [release.restarts(number) for number in range(2)])
        return f"in use {took:.0f} s after kubectl patch"


def a_missing_secret(world):
    """Without its Secret the pod waits, and the notes say how to make it; with it, the pod becomes Ready."""
    with Release(world.cluster, "missing", {"config": {"sinks": {}}}, secret=False) as release:
        notes = release.install(ready=False)
        world.expect_true("the notes warn", "does not exist yet" in notes)
        command = re.search(r"^    (kubectl create secret generic .*?[^\\])$", notes, re.M | re.S)[1]
        time.sleep(2)
        world.expect("Ready pods without the Secret", 0, release.ready())
        begun = time.monotonic()
        Shell(world, SENDBIRD_API_TOKEN=TOKEN).run(command)
        release.await_ready(1, 150)
        return f"Ready {time.monotonic() - begun:.0f} s after the Secret"


def a_wrong_option(world):
    """kubectl exec -i of a command that ends before it has read its input: what is wrong is said, as the README tells."""
    with Release(world.cluster, "wrong", {"config": {"sinks": {}}}) as release:
        release.install()
        begun = time.monotonic()
        command = ["kubectl", "exec", "-i", "--namespace", release.namespace, release.pod(), "--", "/sendbird-bridge"]
        # As much as the events of another replica are.
        wrong = " ".join([*command, "reconcile", "--sinse", "3h", "--also", "-"])
        script = f"yes | head -c 50000000 | {wrong}; test $? -ne 0"
        said = Shell(world).run(script)
        took = time.monotonic() - begun
        world.expect_true(f"the option is named, but found {said}", "--sinse" in said)
        world.expect_at_most("seconds", 75, took)
        return f"{took:.0f} s"


CHECKS = [the_readme, the_runbook, another_size, a_missing_secret, a_renewed_secret, a_wrong_option]
SHORT = [the_readme]
