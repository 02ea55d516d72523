"""Owns: where the time goes while one replica is replaced: which part of it is the bridge's, the kubelet's and the controllers'.

Promises: `Gap` notes the moments from the outside, while it happens: what the API server says of the pod, when the bridge logs what
it does, and, from the sender, the last answer before and the first after. Each part of `parts` ends where the next one begins.
"""

import contextlib
import json
import re
import threading
import time
import urllib.request

import api
import kubernetes

LINE = re.compile(r"^(\S+) \S+ \S+ (.*)$", re.M)
SILENCE = "nothing answered for"
# What each part is, and the moments between which it lies.
PARTS = {
    "from the deletion to SIGTERM": ("deleted", "SIGTERM"),
    "the bridge stops": ("SIGTERM", "stopped"),
    "until the pod is gone": ("stopped", "gone"),
    "until there is another": ("gone", "created"),
    "until its program has begun": ("created", "begun"),
    "until it listens": ("begun", "listening"),
    "until it is Ready": ("listening", "Ready"),
    "until the first answer": ("Ready", "answer"),
}


class Gap:
    """The replacement of the only pod of a release, for `with`."""

    def __init__(self, release):
        self.release = release
        self.at = {}

    def __enter__(self):
        self.old = self.release.found()["metadata"]["uid"]
        # Held open, because the kubelet deletes it with the pod.
        self.old_log = self.log(self.old).open(encoding="utf-8")
        cluster = self.release.cluster
        request = urllib.request.Request(
            f"{cluster.url}{self.release.path}/pods?watch=1", headers={"Authorization": f"Bearer {api.TOKEN}"}
        )
        self.answer = urllib.request.urlopen(request, context=cluster.tls, timeout=600)
        threading.Thread(target=self.read, daemon=True).start()
        return self

    def log(self, uid):
        """What the bridge of a pod logs, as the kubelet keeps it: each line with its time."""
        return self.release.cluster.scratch / f"pod-logs/{self.release.namespace}_{self.release.pod()}_{uid}/bridge/0.log"

    def read(self):
        """Notes what is said of the pod, as it comes."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for line in self.answer:
                now, event = time.time(), json.loads(line)
                pod = event["object"]
                if pod["metadata"]["uid"] != self.old:
                    self.new = pod["metadata"]["uid"]
                    self.at.setdefault("created", now)
                    if kubernetes.is_true(pod, "Ready"):
                        self.at.setdefault("Ready", now)
                elif event["type"] == "DELETED":
                    self.at["gone"] = now
                elif "deletionTimestamp" in pod["metadata"]:
                    self.at.setdefault("deleted", now)

    def __exit__(self, *_exception):
        with contextlib.suppress(OSError, AttributeError):
            self.answer.fp.raw._sock.shutdown(2)
        stopping, new = self.old_log.read(), self.log(self.new).read_text(encoding="utf-8")
        self.old_log.close()
        self.at["SIGTERM"] = moment(stopping, '"shutting down')
        self.at["stopped"] = moment(stopping, '"stopped"')
        self.at["begun"] = moment(new, "")
        self.at["listening"] = moment(new, '"ready"')

    def parts(self, silences):
        """Each part and its seconds. `silences`: when the sender had no answer, by the clock of time.monotonic()."""
        clock = time.time() - time.monotonic()
        last, first = next((begin + clock, end + clock) for begin, end in silences if begin < self.at["gone"] - clock < end)
        at = {**self.at, "answer": first}
        parts = {name: at[end] - at[begin] for name, (begin, end) in PARTS.items()}
        return {SILENCE: first - last, **parts}


def moment(log, part):
    """When the first line with this in it was written."""
    for at, line in LINE.findall(log):
        if part in line:
            base, _, fraction = at.rstrip("Z").partition(".")
            seconds = time.mktime(time.strptime(base[:19], "%Y-%m-%dT%H:%M:%S"))
            return seconds - time.timezone + float(f"0.{fraction[:6].split('+')[0] or 0}")
    raise RuntimeError(f"expected a line with {part!r} in the bridge's log, but found {log[-1000:]!r}")
