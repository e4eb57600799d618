"""A Kubernetes of two nodes for scripts/chart-test, and Redis and Kafka beside it.

It runs in network, process and mount namespaces that end with it. /run/disk is on a disk, the rest of /run in memory. The
first node has the network namespace of this process. The API server, Redis, Kafka and the load are there too. The second
node has another one, and a cable between the two.
"""

import hashlib
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

NODES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
HOST = NODES["node1"]
DISK = Path("/run/disk")
LOG = DISK / "log"
PAUSE = "docker.io/local/pause:1"
# As in the README. No registry is asked for it.
IMAGE = "registry.example/headcount"
VERSION = re.search("^appVersion: (.+)$", Path("deploy/helm/headcount/Chart.yaml").read_text(), re.MULTILINE)[1]
SPACE = "counts"  # The namespace, and the name of the release.


class Failure(Exception):
    pass


def demand(holds, message):
    if not holds:
        raise Failure(message)


def eventually(what, condition, seconds=90, pause=0.2):
    """Waits until the condition holds. Returns what it returned."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        demand(time.monotonic() < until, f"waited {seconds} s for {what}")
        time.sleep(pause)
    return found


def run(*command, seconds=120, **options):
    """What a command writes. It must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds, **options)
    told = (done.stderr.strip() or done.stdout.strip())[-1500:]
    demand(done.returncode == 0, f"{Path(command[0]).name} {' '.join(map(str, command[1:4]))}: {told}")
    return done.stdout


def succeeds(*command, seconds=20):
    try:
        return subprocess.run([str(word) for word in command], capture_output=True, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def make_image(name, program, to, arguments=(), more=()):
    """An archive of an image with a program, the libraries that ldd names, and some more files. No engine is needed."""
    layer = io.BytesIO()
    files = {f"usr/local/bin/{name.split('/')[-1].split(':')[0]}": Path(program)}
    for library in re.findall(r"(/\S+) \(0x", run("ldd", program)):
        files[library.lstrip("/")] = Path(library)
    files |= {file.lstrip("/"): Path(file) for file in more}
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for path, file in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = file.stat().st_size, 0o755
            archive.addfile(entry, io.BytesIO(file.read_bytes()))
    layer = layer.getvalue()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        # As in the Dockerfile.
        "config": {"Entrypoint": ["/" + next(iter(files)), *arguments], "User": "10001:10001"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    config = json.dumps(config).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(to, "w") as archive:
        for path, data in (("config.json", config), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


class Cluster:
    def __init__(self, programs, helm, group):
        self.programs, self.helm_program, self.group = Path(programs), helm, group
        self.password = secrets.token_hex(16)
        self.processes = {}
        os.environ["KUBECONFIG"] = "/run/kubeconfig"
        for variable in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
            os.environ[variable] = "/run/helm"

    def start(self, name, *command, node="node1", **options):
        """A program that runs to the end of the test, on a node."""
        entered = [] if node == "node1" else ["nsenter", f"--net=/run/netns/{node}"]
        with open(LOG / f"{name}-{node}", "w") as log:
            words = entered + [str(word) for word in command]
            self.processes[f"{name}-{node}"] = subprocess.Popen(words, stdout=log, stderr=log, cwd="/run", **options)

    def is_up(self):
        """A program that ended would only show as a wait for something else."""
        for name, process in self.processes.items():
            demand(process.poll() is None, f"{name} ended: {(LOG / name).read_text()[-600:]}")
        return True

    def kubectl(self, *arguments, **options):
        return run(self.programs / "kubectl", *arguments, **options)

    def get(self, *arguments):
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def helm(self, *arguments, **options):
        return run(self.helm_program, *arguments, **options)

    def ctr(self, node, *arguments):
        return run("ctr", "--address", f"/run/{node}/containerd.sock", "--namespace", "k8s.io", *arguments)

    def connect_nodes(self):
        run("ip", "netns", "add", "node2")
        run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", "node2")
        for node, address in NODES.items():
            there = [] if node == "node1" else ["nsenter", "--net=/run/netns/node2"]
            other = "node2" if node == "node1" else "node1"
            run(*there, "ip", "link", "set", "lo", "up")
            run(*there, "ip", "address", "add", f"{address}/24", "dev", "cable")
            run(*there, "ip", "link", "set", "cable", "up")
            # Without a default route nothing is sent to the address of a Service. The pods of the other node are there too.
            run(*there, "ip", "route", "add", "default", "via", NODES[other])
            run(*there, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def start_servers(self):
        self.start("redis", "redis-server", "--bind", HOST, "--port", 6379, "--requirepass", self.password, "--save", "",
                   "--maxmemory-policy", "noeviction")
        # Its clients are pods, so loopback would not do.
        listeners = f"CLIENTS://{HOST}:9092,CONTROLLER://127.0.0.2:9093,BROKER://127.0.0.3:9094"
        repository = Path(__file__).resolve().parents[2]
        self.start("kafka", repository / "scripts/kafka", "serve", "/run/kafka", 9092, f"listeners={listeners}",
                   f"advertised.listeners=CLIENTS://{HOST}:9092,BROKER://127.0.0.3:9094")

    def start_control_plane(self):
        run("openssl", "genrsa", "-out", "/run/accounts.key", "2048")
        Path("/run/tokens.csv").write_text('admin,admin,1,"system:masters"\n')
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"https://{HOST}:6443", "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": "admin"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        }
        Path("/run/kubeconfig").write_text(json.dumps(config))
        self.start("etcd", "etcd", "--data-dir", "/run/etcd")
        self.start("kube-apiserver", self.programs / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
                   f"--bind-address={HOST}", f"--advertise-address={HOST}", "--service-cluster-ip-range=10.99.0.0/24",
                   "--service-account-key-file=accounts.key", "--service-account-signing-key-file=accounts.key",
                   "--service-account-issuer=https://cluster", "--token-auth-file=tokens.csv", "--authorization-mode=RBAC",
                   "--cert-dir=certificates", "--kubelet-preferred-address-types=InternalIP")
        ready = lambda: self.is_up() and succeeds(self.programs / "kubectl", "get", "--raw", "/readyz")
        eventually("the API server", ready, 180)
        self.start("kube-controller-manager", self.programs / "kube-controller-manager", "--kubeconfig=kubeconfig",
                   "--service-account-private-key-file=accounts.key", "--leader-elect=false",
                   # It looks every 15 s otherwise, and believes no pod that is younger than five minutes.
                   "--horizontal-pod-autoscaler-sync-period=2s", "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
                   "--horizontal-pod-autoscaler-initial-readiness-delay=1s")
        self.start("kube-scheduler", self.programs / "kube-scheduler", "--kubeconfig=kubeconfig", "--leader-elect=false")

    def start_containerd(self, node):
        number = node[-1]
        for directory in (Path("/run", node, "cni"), DISK / node):
            directory.mkdir(parents=True)
        network = {
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [{
                "type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True,
                "ipam": {"type": "host-local", "dataDir": f"/run/{node}/addresses", "routes": [{"dst": "0.0.0.0/0"}],
                         "ranges": [[{"subnet": f"10.78.{number}.0/24"}]]},
            }],
        }
        Path("/run", node, "cni/pods.conflist").write_text(json.dumps(network))
        # A machine may forbid to lower oom_score_adj. Then no pod would start without restrict_oom_score_adj.
        Path("/run", node, "containerd.toml").write_text(f"""
            version = 2
            root = "{DISK}/{node}/containerd"
            state = "/run/{node}/containerd"
            [grpc]
            address = "/run/{node}/containerd.sock"
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "{PAUSE}"
            restrict_oom_score_adj = true
            [plugins."io.containerd.grpc.v1.cri".cni]
            bin_dir = "/usr/lib/cni"
            conf_dir = "/run/{node}/cni"
        """)
        self.start("containerd", "containerd", "--config", f"/run/{node}/containerd.toml", node=node)
        answers = lambda: self.is_up() and succeeds("ctr", "--address", f"/run/{node}/containerd.sock", "version")
        eventually(f"containerd of {node}", answers)
        for archive in ("pause.tar", "headcount.tar"):
            self.ctr(node, "images", "import", DISK / archive)
        for tag in ("2", VERSION):
            self.ctr(node, "images", "tag", f"{IMAGE}:1", f"{IMAGE}:{tag}")

    def start_node(self, node):
        self.start_containerd(node)
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "failCgroupV1": False, "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{self.group}/{node}",
            "failSwapOn": False, "enforceNodeAllocatable": [], "resolvConf": "", "podLogsDir": f"{DISK}/{node}/logs",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix:///run/{node}/containerd.sock",
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi"},
        }
        Path("/run", node, "kubelet.json").write_text(json.dumps(config))
        self.start("kubelet", self.programs / "kubelet", f"--config=/run/{node}/kubelet.json", "--kubeconfig=kubeconfig",
                   f"--root-dir={DISK}/{node}/kubelet", f"--cert-dir=/run/{node}/certificates",
                   f"--hostname-override={node}", f"--node-ip={NODES[node]}", node=node)
        self.start("kube-proxy", self.programs / "kube-proxy", "--kubeconfig=kubeconfig", f"--hostname-override={node}",
                   "--cluster-cidr=10.78.0.0/16", "--conntrack-max-per-core=0", "--conntrack-min=0", node=node)

    def up(self):
        LOG.mkdir()
        sleep = run("sh", "-c", "command -v sleep").strip()
        make_image(PAUSE, sleep, DISK / "pause.tar", arguments=["infinity"])
        make_image(f"{IMAGE}:1", DISK / "headcount", DISK / "headcount.tar", more=["/etc/ssl/certs/ca-certificates.crt"])
        self.connect_nodes()
        self.start_servers()
        self.start_control_plane()
        for node in NODES:
            self.start_node(node)
        eventually("the nodes", lambda: self.is_up() and self.ready_nodes() == len(NODES), 180)
        eventually("Kafka", lambda: self.is_up() and "Kafka Server started" in (LOG / "kafka-node1").read_text())
        eventually("the accounts of pods", lambda: succeeds(self.programs / "kubectl", "get", "serviceaccount", "default"))

    def ready_nodes(self):
        conditions = [condition for node in self.get("nodes")["items"] for condition in node["status"].get("conditions", [])]
        return sum(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


class Pods(threading.Thread):
    """What became of each pod, by watching: a pod that has gone cannot be asked."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.known, self.gone, self.ended = set(), set(), {}
        url = f"/api/v1/namespaces/{SPACE}/pods?watch=true&resourceVersion=0"
        self.process = subprocess.Popen([cluster.programs / "kubectl", "get", "--raw", url], stdout=subprocess.PIPE, text=True)

    def run(self):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["object"]["kind"] != "Pod":
                print(f"the watch ended: {line}", file=sys.stderr)
                return
            name = event["object"]["metadata"]["name"]
            self.known.add(name)
            if event["type"] == "DELETED":
                self.gone.add(name)
            for status in event["object"]["status"].get("containerStatuses", []):
                if ended := status["state"].get("terminated"):
                    self.ended[name] = (ended["exitCode"], ended.get("reason"))

    def exits(self, names):
        """The exit code and the reason of pods that have gone."""
        eventually("the end of the pods in the watch", lambda: set(names) <= self.gone or not self.is_alive())
        demand(self.is_alive(), "the watch of pods ended")
        return {name: self.ended.get(name) for name in names}
