"""Owns: the one node of the cluster: its namespaces, its cgroups, and the programs that run in it.

Promises: the node is a network namespace without a way out, a mount namespace, and a process namespace whose first process
is `pause`. When this program ends, however it ends, the kernel kills that process, with it every process of the node,
and with them every mount and network device. What is left are empty cgroups; `remove` removes them, also those of a run
that was killed. No sysctl, mount or address of the machine is changed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ADDRESS = "10.99.0.1"
# Addresses of Services. Nothing answers for the whole network, so it needs a route.
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
CGROUP = "sendbird-bridge-cluster-"

# What the kubelet insists on and would set for the whole machine: it reads these values instead.
SYSCTLS = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
# Where programs of the node create directories, whatever they are told.
SCRATCH = ("/run", "/var/lib", "/var/log", "/usr/libexec")

# $1: the directory of the node, $2: pause. Each mount is private to the node.
BEGIN = f"""
set -eu
mount --make-rshared /
for name in {" ".join(SYSCTLS)}; do mount --bind "$1/sysctl/$name" "/proc/sys/$name"; done
for directory in {" ".join(SCRATCH)}; do mount -t tmpfs -o mode=755 tmpfs "$directory"; done
mkdir -p /run/lock /var/lib/kubelet
ip link set lo up
ip address add {ADDRESS}/32 dev lo
ip route add {SERVICES} dev lo
echo 1 > /proc/sys/net/ipv4/ip_forward
echo up > "$1/up"
exec "$2"
"""


class Node:
    """The node. Made by `start`, from then on the network of this program, too."""

    def __init__(self, scratch, programs):
        self.scratch = scratch
        self.programs = programs
        self.cgroup = f"{CGROUP}{os.getpid()}"
        self.first = None
        self.processes = {}
        (scratch / "logs").mkdir()

    def start(self):
        """Makes the cgroups and the namespaces, and enters the network."""
        for hierarchy in hierarchies():
            path = hierarchy / self.cgroup
            path.mkdir()
            # A new cpuset allows nothing.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (hierarchy / name).exists() and (path / name).exists():
                    (path / name).write_text((hierarchy / name).read_text())
        for name, value in SYSCTLS.items():
            path = self.scratch / "sysctl" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value + "\n")
        log = open(self.scratch / "logs/node", "wb")
        # If we end, unshare does (--pdeathsig); if unshare ends, the first process does (--kill-child).
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--propagation", "private", "--pid"]
        command += ["--fork", "--kill-child", "--mount-proc", "sh", "-c", BEGIN, "sh", self.scratch, self.programs / "pause"]
        self.unshare = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + 20
        while not (self.scratch / "up").exists():
            if self.unshare.poll() is not None or time.monotonic() > until:
                sys.exit(f"expected a node, but found: {self.log('node')}")
            time.sleep(0.02)
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        self.first = int(children[0])
        enter_network(self.first)

    def inside(self, *command):
        """The command as it is to be started for running in the node."""
        return ["nsenter", "--target", str(self.first), "--mount", "--net", "--pid", "--", *(str(part) for part in command)]

    def run(self, name, *command, **environment):
        """Starts a program in the node; what it says is in the logs."""
        log = open(self.scratch / "logs" / name, "ab")
        self.processes[name] = subprocess.Popen(
            self.inside(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
        )

    def output(self, *command):
        """What a command in the node writes to standard output."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.returncode} {done.stderr}")
        return done.stdout

    def kill(self, name):
        """Kills one of the programs and waits until it has ended."""
        process = self.processes.pop(name)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait()

    def check_running(self):
        """Ends this program if one of the node's has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                sys.exit(f"expected {name} to run, but it has ended ({process.returncode}): {self.log(name)}")

    def log(self, name, lines=20):
        """The last that a program said."""
        text = (self.scratch / "logs" / name).read_text(encoding="utf-8", errors="replace")
        return "\n" + "\n".join(text.splitlines()[-lines:])

    def end(self):
        """Kills all of it and waits until nothing is left."""
        if self.first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first, signal.SIGKILL)
            self.unshare.wait()
        for process in self.processes.values():
            process.wait()
        left = remove(self.cgroup)
        if left:
            sys.exit(f"expected no cgroup to be left, but found {left}")


def enter_network(pid):
    """From now on this thread, and what it starts, has the network of that process."""
    with open(f"/proc/{pid}/ns/net", "rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


def hierarchies():
    """The cgroup file systems of this machine, version 1 or 2."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in lines if fields[2] in ("cgroup", "cgroup2")]


def remove(name):
    """Removes the cgroups of this name, whose processes have been killed; those that can't be removed."""
    left = [hierarchy / name for hierarchy in hierarchies()]
    until = time.monotonic() + 20
    while left and time.monotonic() < until:
        for root in left:
            for directory, _, _ in os.walk(root, topdown=False):
                # Busy as long as a killed process is not gone.
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
        left = [root for root in left if root.exists()]
        time.sleep(0.05 if left else 0)
    return left


def sweep():
    """Removes what runs left behind that were killed together with all that watched over them."""
    for hierarchy in hierarchies():
        for path in hierarchy.glob(f"{CGROUP}*"):
            # A zombie has none.
            command = Path("/proc", path.name.removeprefix(CGROUP), "cmdline")
            if not command.exists() or not command.read_bytes():
                remove(path.name)


if __name__ == "__main__":
    sweep()
