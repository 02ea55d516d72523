"""Owns: the brokers of the cluster: where they run, how pods reach them, and what is in them.

Promises: each is one of tests/brokers, a program of the node that ends with it. Pods find it by the name of a Service, behind
which a relay passes on to its port on loopback. `events` reads it with a client of other people's.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import node as nodes

ROOT = Path(__file__).resolve().parents[3]
BROKER = ROOT / "tests/brokers/broker"
NAMESPACE = "brokers"
PORTS = {"nats": 4222, "kafka": 9092, "rabbitmq": 5672}
# The port of Kafka's that tells its clients the Service's name.
BEHIND = {"kafka": 19092}
# A sink of each, with what it declares.
SINKS = {
    "nats": {"type": "nats", "servers": [f"nats://nats.{NAMESPACE}.svc:4222"], "create_stream": True},
    "kafka": {"type": "kafka", "brokers": [f"kafka.{NAMESPACE}.svc:9092"], "create_topics": True},
    "rabbitmq": {
        "type": "rabbitmq",
        "url_file": "/run/secrets/sendbird-bridge/rabbitmq-url",
        "declare": {"queues": [{"name": "calls", "bindings": ["#"]}]},
    },
}
RABBITMQ_URL = f"amqp://guest:guest@rabbitmq.{NAMESPACE}.svc:5672/%2f"


class Brokers:
    """The brokers of this cluster, started when they are first asked for."""

    def __init__(self, cluster, clients):
        self.cluster = cluster
        self.clients = clients
        self.directory = cluster.scratch / "brokers"
        self.running = set()

    def start(self, name):
        """Starts a broker and makes its Service."""
        if name in self.running:
            return
        if not self.running:
            self.cluster.make("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        home = self.directory / name
        home.mkdir(parents=True)
        (home / "port").write_text(f"{PORTS[name] if name not in BEHIND else BEHIND[name] + 1}\n")
        if name in BEHIND:
            (home / "proxied.port").write_text(f"{BEHIND[name]}\n")
        if name == "rabbitmq":
            # Otherwise guest may come from loopback alone, which the relay does, but not say so.
            (self.directory / "rabbitmq.conf").write_text("loopback_users = none\n")
        self.do("start", name)
        behind = BEHIND.get(name, PORTS[name])
        self.cluster.node.run(
            f"relay-{name}", sys.executable, "-B", __file__, nodes.ADDRESS, str(PORTS[name]), str(behind)
        )
        port = {"name": "client", "port": PORTS[name], "protocol": "TCP"}
        path = f"/api/v1/namespaces/{NAMESPACE}/services"
        self.cluster.make(path, {"metadata": {"name": name}, "spec": {"ports": [port]}})
        self.cluster.make(f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices", {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [port], "endpoints": [{"addresses": [nodes.ADDRESS]}],
        })  # fmt: skip
        self.running.add(name)

    def do(self, command, name):
        """A command of tests/brokers/broker."""
        proxy = [f"TEST_KAFKA_PROXY=kafka.{NAMESPACE}.svc:{PORTS['kafka']}"]
        return self.cluster.node.output("env", *proxy, BROKER, command, name, self.directory)

    def events(self, name):
        """The calls that the broker has events of, each with how many."""
        address = self.do("address", name).strip()
        done = subprocess.run(
            [self.clients, "-B", Path(__file__).with_name("read.py"), name, address],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"reading {name}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)


async def relay(address, port, behind):
    """Passes each connection to that port on to another one on loopback, until it is killed."""

    async def copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader, writer):
        try:
            there, back = await asyncio.open_connection("127.0.0.1", behind)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    server = await asyncio.start_server(accept, address, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
