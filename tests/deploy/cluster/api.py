"""Owns: how the checks talk to an API server of Kubernetes.

Promises: every request ends within 30 s. The server is trusted by the certificate that it has made itself.
"""

import contextlib
import json
import ssl
import sys
import urllib.error
import urllib.request

TOKEN = "a-token-of-the-test"
# What the server reads who may come from: the checks, who may do everything.
TOKENS = f"{TOKEN},admin,admin,system:masters\n"


class Api:
    """A server at this address, which has its certificates in that directory."""

    def __init__(self, url, certificates):
        self.url = url
        self.authority = certificates / "apiserver.crt"

    def access(self):
        """What kubectl, helm and the programs of a node reach it by."""
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": self.url, "certificate-authority": str(self.authority)}}],
            "users": [{"name": "it", "user": {"token": TOKEN}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }  # fmt: skip

    def is_ready(self):
        """Whether the server says so."""
        if not self.authority.exists():
            return False
        # It may be half written.
        with contextlib.suppress(OSError):
            self.tls = ssl.create_default_context(cafile=self.authority)
            return self.ask("GET", "/readyz")[0] == 200
        return False

    def ask(self, method, path, body=None, kind="application/json"):
        """Status, answer and warnings."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        data = None if body is None else json.dumps(body, default=str).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=30) as answer:
                return answer.status, answer.read().decode(), answer.headers.get_all("Warning") or []
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers.get_all("Warning") or []

    def make(self, path, body):
        """Creates an object that the checks stand on."""
        status, answer, _warnings = self.ask("POST", path, body)
        if status != 201:
            sys.exit(f"POST {path}: expected 201, but found {status} {answer[:2000]}")
        return json.loads(answer)
