"""Owns: the processes of a measurement: the bridge, the floors, the handlers in Node and the brokers, and what the system
counts for each of them.

Promises: every wait has a limit; all that was started ends with the run.
"""
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

TOKEN = "0123456789abcdef0123456789abcdef01234567"
TICKS = os.sysconf("SC_CLK_TCK")
BROKERS = ("nats", "kafka", "rabbitmq")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def eventually(what, condition, limit_s=60, pause_s=0.02):
    """The condition's answer, once it is true."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected within {limit_s} s that {what}, but it did not come to that")
        time.sleep(pause_s)


def cpu_s(pid):
    """Seconds of processor time, user and system, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine_cpu_s():
    """Seconds of processor time that the machine has used, and has had."""
    fields = [int(field) / TICKS for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def written(pid):
    """Bytes that the process has caused to be written to the disk."""
    return int(re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.M)[1])


def memory_mib(pid, name="VmHWM"):
    return int(re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) / 1024


def waits(pid):
    """How often each thread has given up its processor because it had to wait."""
    counts = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            counts[task.name] = int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)[1])
        except OSError:
            pass  # The thread has ended.
    return counts


class SystemCalls:
    """Counts the system calls of a process while it is open, by strace; the process is slower meanwhile."""

    GROUPS = {
        "calls": r".",
        "write_calls": r"^p?write(v|64|v2)?$",
        "sync_calls": r"^f(data)?sync$",
        "lock_calls": r"^(fcntl|flock)$",
        "socket_calls": r"^(send|recv)",
        "futex_calls": r"^futex$",
        "epoll_calls": r"^epoll_",
    }

    def __init__(self, pid, report):
        self.pid, self.report = pid, Path(report)

    def __enter__(self):
        command = ["strace", "-c", "-f", "-q", "-S", "calls", "-U", "calls,name", "-o", self.report, "-p", self.pid]
        self.process = Process(command, self.report.with_suffix(".log"))
        # All threads: strace attaches to them one after the other.
        tasks = Path(f"/proc/{self.pid}/task")
        eventually("strace is attached",
                   lambda: all("\nTracerPid:\t0\n" not in (task / "status").read_text() for task in tasks.iterdir()), 30)
        return self

    def __exit__(self, *_):
        self.process.stop(signal.SIGINT)

    def counts(self):
        lines = re.findall(r"^\s*(\d+)\s+(\w+)$", self.report.read_text(), re.M)
        calls = {name: int(count) for count, name in lines if name != "total"}
        if not calls:
            raise RuntimeError(f"strace counted nothing: {self.report.with_suffix('.log').read_text()[-500:]}")
        return {group: sum(count for name, count in calls.items() if re.search(pattern, name))
                for group, pattern in self.GROUPS.items()}


def device_written(directory):
    """Bytes written to the disk of this directory, by everybody; none where the disk is not a block device."""
    number = os.stat(directory).st_dev
    path = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    return int(path.read_text().split()[6]) * 512 if path.exists() else None


class Process:
    """A server that is measured."""

    running = []

    def __init__(self, command, log, environment=None):
        self.command, self.log, self.environment = [str(word) for word in command], Path(log), environment or {}
        self.start()

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **self.environment})
        Process.running.append(self)

    @property
    def pid(self):
        return self.process.pid

    def answers(self, port, request=None):
        """Whether the port takes connections, and answers the request with 200."""
        if self.process.poll() is not None:
            raise RuntimeError(f"a process ended early: {' '.join(self.command)}\n{self.log.read_text()[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                if request is None:
                    return True
                connection.sendall(request)
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self in Process.running:
            Process.running.remove(self)

    def kill(self):
        self.stop(signal.SIGKILL)

    @classmethod
    def stop_all(cls):
        for process in list(cls.running):
            process.kill()


class Server(Process):
    """A floor, or a handler in Node: a program that is told its port where the command says {port}."""

    def __init__(self, command, log, environment=None):
        self.port = free_port()
        command = [str(word).replace("{port}", str(self.port)) for word in command]
        super().__init__(command, log, environment)
        eventually("the server listens", lambda: self.answers(self.port))


class Bridge(Process):
    """The program, in release, with no sink or one."""

    def __init__(self, program, directory, sink=""):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port, self.admin = free_port(), free_port()
        self.config = self.directory / "bridge.toml"
        self.configure(sink)
        super().__init__([program, "--config", self.config, "--log-format", "json", "serve"], self.directory / "log")

    def configure(self, sink):
        self.config.write_text(f'''[server]
listen = "127.0.0.1:{self.port}"
[admin]
listen = "127.0.0.1:{self.admin}"
[access]
api_tokens = ["{TOKEN}"]
[journal]
dir = "{self.directory}/journal"
{sink}''')

    def start(self):
        begun = time.monotonic()
        super().start()
        ready = b"GET /readyz HTTP/1.1\r\nhost: bridge\r\nconnection: close\r\n\r\n"
        eventually("the bridge is ready", lambda: self.answers(self.admin, ready), limit_s=120, pause_s=0.002)
        self.ready_s = time.monotonic() - begun

    def get(self, target):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{target}", timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name):
        """The sum over all labels."""
        values = re.findall(rf"^sendbird_bridge_{name}(?:{{.*}})? (\S+)$", self.get("/metrics"), re.M)
        return sum(float(value) for value in values)

    def published(self):
        return int(self.metric("sink_published_total"))

    def pending(self):
        return self.backlog()[0]

    def backlog(self):
        """How many events are to be published, and the age of the oldest of them in seconds."""
        sinks = json.loads(self.get("/status"))["sinks"]
        return (sum(sink["pending_records"] for sink in sinks),
                max((sink["oldest_pending_seconds"] for sink in sinks), default=0))

    def drained(self, limit_s=300):
        eventually("all events are published", lambda: self.pending() == 0, limit_s)

    def envelope_bytes(self):
        """The mean length of the events that are kept."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/events?follow=false", timeout=30) as answer:
            lengths = [len(line) - len(b"data: \n") for line, _ in zip(answer, range(1000)) if line.startswith(b"data: ")]
        return sum(lengths) / len(lengths)


class Brokers:
    """The run's own brokers, by tests/brokers/broker."""

    def __init__(self, program, directory):
        self.program, self.directory = program, directory
        self.addresses = {broker: self.command("address", broker) for broker in BROKERS}

    def command(self, command, broker):
        done = subprocess.run([self.program, command, broker, self.directory], check=True, stdout=subprocess.PIPE, timeout=120)
        return done.stdout.decode().strip()

    def pause(self, broker):
        self.command("pause", broker)

    def resume(self, broker):
        self.command("resume", broker)

    @contextmanager
    def paused(self, broker):
        """The broker stands still, whatever happens meanwhile."""
        self.pause(broker)
        try:
            yield
        finally:
            self.resume(broker)

    def cpu_s(self, broker):
        return cpu_s(int(self.command("pid", broker)))


class Beside:
    """A load beside something else."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        Process.running.append(self)

    def begun(self):
        """Waits until it has prepared its deliveries, and begins to send them."""
        self.process.stdout.readline()

    def finish(self, limit_s=600):
        output = self.process.communicate(timeout=limit_s)[0]
        Process.running.remove(self)
        return json.loads(output.splitlines()[-1])

    def kill(self):
        self.process.kill()
        self.process.wait()
        if self in Process.running:
            Process.running.remove(self)


class Bench:
    """The program of tests/bench: loads, floors, clients."""

    def __init__(self, program, brokers):
        self.program, self.brokers = program, brokers

    def run(self, *arguments, limit_s=900):
        done = subprocess.run([self.program, *map(str, arguments)], stdout=subprocess.PIPE, timeout=limit_s, check=True)
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    def start(self, *arguments):
        """The same beside something else."""
        return Beside(self.program, *map(str, arguments))

    def destination(self, broker, name):
        return [broker, self.brokers.addresses[broker], name]

    def create(self, broker, name):
        self.run("destination", "create", *self.destination(broker, name))

    def count(self, broker, name):
        """The messages that the broker holds, asked of it."""
        return self.run("destination", "count", *self.destination(broker, name))

    def delete(self, broker, name):
        self.run("destination", "delete", *self.destination(broker, name))
