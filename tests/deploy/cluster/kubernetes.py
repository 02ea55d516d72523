"""Owns: Kubernetes on the one node: which programs there are, how each is configured, and when it is up.

Promises: `start` returns when the node is Ready, the images are there and the Services' names resolve. Everything that the
programs write lies under the node's directory. Nobody but this program can reach any of them.
"""

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import api
import images
import node as nodes

ADDRESS = nodes.ADDRESS
NODE = "node"
PAUSE = "localhost/pause:1"
IMAGE = "localhost/sendbird-bridge:test"
SOCKET = "/run/containerd/containerd.sock"
VOLUMES = 60
DISABLED = [f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")]


class Cluster(api.Api):
    """The cluster: started, asked by its own HTTP API, by kubectl and by helm."""

    def __init__(self, node, helm):
        super().__init__(f"https://{ADDRESS}:6443", node.scratch / "certificates")
        self.node = node
        self.scratch = node.scratch
        self.helm_program = helm
        self.kubectl_program = node.programs / "kubectl"
        self.kubeconfig = self.scratch / "kubeconfig"

    # ---- the start ---------------------------------------------------------------------------------------------------

    def start(self, bridge):
        """Starts everything. `bridge`: the root file system of the bridge's image."""
        self.bridge = bridge
        self.write_configuration()
        programs = self.node.programs
        self.node.run("containerd", "containerd", "--config", self.scratch / "containerd.toml")
        self.node.run(
            "etcd", programs / "etcd", f"--data-dir={self.scratch}/etcd", "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
        )  # fmt: skip
        key = self.scratch / "service-account.key"
        self.node.run(
            "kube-apiserver", programs / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0", f"--advertise-address={ADDRESS}", f"--cert-dir={self.scratch}/certificates",
            f"--token-auth-file={self.scratch}/tokens.csv", "--authorization-mode=RBAC", "--allow-privileged=true",
            f"--service-cluster-ip-range={nodes.SERVICES}", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--kubelet-preferred-address-types=InternalIP", "--endpoint-reconciler-type=master-count",
            # By this certificate servers behind this one know that it is this one.
            f"--requestheader-client-ca-file={self.scratch}/front-proxy.crt", "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={self.scratch}/front-proxy.crt", f"--proxy-client-key-file={self.scratch}/front-proxy.key",
        )  # fmt: skip
        self.import_images(bridge)
        self.await_true("the API server is ready", self.is_ready)
        self.node.run(
            "kube-controller-manager", programs / "kube-controller-manager", f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false", "--bind-address=127.0.0.1", f"--service-account-private-key-file={key}",
            f"--root-ca-file={self.authority}",
            # The autoscaler of a real cluster looks every 15 s, and waits for 5 min before it removes a pod.
            "--horizontal-pod-autoscaler-sync-period=5s", "--horizontal-pod-autoscaler-downscale-stabilization=20s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=10s",
        )  # fmt: skip
        self.node.run(
            "kube-scheduler", programs / "kube-scheduler", f"--kubeconfig={self.kubeconfig}", "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )  # fmt: skip
        self.node.run(
            "kubelet", programs / "kubelet", f"--kubeconfig={self.kubeconfig}", f"--config={self.scratch}/kubelet.yaml",
            f"--root-dir={self.scratch}/kubelet", f"--cert-dir={self.scratch}/kubelet-certificates",
            f"--hostname-override={NODE}", f"--node-ip={ADDRESS}",
        )  # fmt: skip
        self.node.run("kube-proxy", programs / "kube-proxy", f"--config={self.scratch}/proxy.yaml")
        self.node.run("coredns", programs / "coredns", "-conf", self.scratch / "Corefile")
        self.make_storage("local", VOLUMES)
        self.await_true("the node is Ready", lambda: is_true(self.get(f"/api/v1/nodes/{NODE}"), "Ready"))
        self.await_true("DNS answers", lambda: self.http("http://127.0.0.1:8181/ready") == 200)

    def write_configuration(self):
        """The files that the programs are started with."""
        scratch = self.scratch
        subprocess.run(
            ["openssl", "genrsa", "-out", scratch / "service-account.key", "2048"], check=True, capture_output=True
        )
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", scratch / "front-proxy.key", "-out", scratch / "front-proxy.crt"]
        subprocess.run(
            ["openssl", "req", "-x509", "-days", "2", *key, "-subj", "/CN=front-proxy", "-addext", "extendedKeyUsage=clientAuth"],
            check=True, capture_output=True,
        )  # fmt: skip
        (scratch / "tokens.csv").write_text(api.TOKENS, encoding="utf-8")
        self.write("kubeconfig", self.access())
        (scratch / "containerd.toml").write_text(f"""
version = 2
root = "{scratch}/containerd"
state = "/run/containerd-state"
oom_score = 0
disabled_plugins = {json.dumps([*DISABLED, "io.containerd.internal.v1.opt"])}
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  # Without the right to lower a score, runc ends with an unexpected EOF.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{scratch}/network"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
""")
        # No bridge, which would need a module of the kernel.
        self.write("network/10-pods.conflist", {
            "cniVersion": "1.0.0", "name": "pods", "plugins": [
                {"type": "ptp", "ipMasq": False, "ipam": {
                    "type": "host-local", "dataDir": "/run/pod-addresses", "ranges": [[{"subnet": nodes.PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            ],
        })  # fmt: skip
        little = dict.fromkeys(("nodefs.available", "imagefs.available", "nodefs.inodesFree"), "1%")
        little["memory.available"] = "100Mi"
        self.write("kubelet.yaml", {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "failCgroupV1": False, "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{self.node.cgroup}",
            "containerRuntimeEndpoint": f"unix://{SOCKET}", "podLogsDir": f"{scratch}/pod-logs",
            "volumePluginDir": f"{scratch}/volume-plugins", "resolvConf": "",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"}, "clusterDNS": [ADDRESS], "clusterDomain": "cluster.local",
            "failSwapOn": False, "protectKernelDefaults": True, "makeIPTablesUtilChains": False,
            "evictionHard": little, "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        })  # fmt: skip
        self.write("proxy.yaml", {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "clientConnection": {"kubeconfig": str(self.kubeconfig)}, "clusterCIDR": nodes.PODS,
            "hostnameOverride": NODE, "bindAddress": ADDRESS, "healthzBindAddress": "127.0.0.1:10256",
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        })  # fmt: skip
        (scratch / "Corefile").write_text(f"""
.:53 {{
  errors
  ready
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {self.kubeconfig}
    ttl 5
  }}
}}
""")

    def write(self, name, content):
        """A file of the node's directory; JSON is YAML too."""
        path = self.scratch / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")

    def import_images(self, bridge):
        """Gives the node the images; it can't get others."""
        pause = self.scratch / "pause"
        pause.mkdir()
        (pause / "pause").write_bytes((self.node.programs / "pause").read_bytes())
        (pause / "pause").chmod(0o755)
        wanted = [(PAUSE, {"Entrypoint": ["/pause"]}, pause), (IMAGE, images.bridge_config(), bridge)]
        self.await_true("containerd answers", lambda: self.ctr("version") is not None)
        for name, config, folder in wanted:
            self.import_image(name, config, folder)

    def import_image(self, name, config, folder):
        """Gives the node an image made of a folder."""
        path = self.scratch / "image.tar"
        images.archive(path, name, config, folder)
        self.node.output("ctr", "--namespace", "k8s.io", "images", "import", path)
        path.unlink()

    def make_storage(self, name, volumes, mode="ReadWriteOnce"):
        """Local volumes, which are what fsGroup works with, and their class. That named `local` is the default."""
        default = {"storageclass.kubernetes.io/is-default-class": str(name == "local").lower()}
        self.make("/apis/storage.k8s.io/v1/storageclasses", {
            "metadata": {"name": name, "annotations": default},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        })  # fmt: skip
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}]
        for number in range(volumes):
            path = self.scratch / f"volumes/{name}-{number}"
            path.mkdir(parents=True)
            self.make("/api/v1/persistentvolumes", {
                "metadata": {"name": f"{name}-{number}"},
                "spec": {
                    "capacity": {"storage": "100Gi"}, "accessModes": [mode],
                    "persistentVolumeReclaimPolicy": "Retain", "storageClassName": name,
                    "local": {"path": str(path)}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
                },
            })  # fmt: skip

    # ---- asking ------------------------------------------------------------------------------------------------------

    def get(self, path):
        """The object, or nothing."""
        status, answer, _warnings = self.ask("GET", path)
        return json.loads(answer) if status == 200 else None

    def patch(self, path, body):
        """Merges into an object."""
        status, answer, _warnings = self.ask("PATCH", path, body, "application/merge-patch+json")
        if status != 200:
            raise RuntimeError(f"PATCH {path}: expected 200, but found {status} {answer[:2000]}")
        return json.loads(answer)

    def http(self, url, seconds=5):
        """The status of an answer, 0 without one."""
        try:
            with urllib.request.urlopen(url, timeout=seconds) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def ctr(self, *arguments):
        """What containerd's own client says; nothing if it fails."""
        with contextlib.suppress(RuntimeError):
            return self.node.output("ctr", "--namespace", "k8s.io", *arguments)
        return None

    def process(self, container):
        """The process of a container, as the node numbers it."""
        for line in self.ctr("tasks", "list").splitlines():
            if line.startswith(container.rpartition("/")[2]):
                return line.split()[1]
        raise RuntimeError(f"expected a process of {container}, but found none")

    def kubectl(self, *arguments, stdin=None, timeout=180):
        """The finished process."""
        return self.command(self.kubectl_program, "--kubeconfig", self.kubeconfig, *arguments, stdin=stdin, timeout=timeout)

    def helm(self, *arguments, timeout=300):
        """The finished process."""
        return self.command(self.helm_program, "--kubeconfig", self.kubeconfig, *arguments, timeout=timeout)

    def command(self, *command, stdin=None, timeout=180, env=None):
        """The finished process; its output is text."""
        return subprocess.run(
            [str(part) for part in command], input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=timeout, env=env,
        )  # fmt: skip

    def await_true(self, what, condition, seconds=90, pause=0.1):
        """Waits for it; how long it took. What never comes ends this program."""
        begun = time.monotonic()
        while not condition():
            self.node.check_running()
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"expected within {seconds} s: {what}")
            time.sleep(pause)
        return time.monotonic() - begun


def is_true(found, condition):
    """Whether an object has this condition."""
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)
