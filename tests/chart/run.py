"""The checks of scripts/chart-test. It starts this script, and says what it needs."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path

from cluster import DISK, HOST, IMAGE, LOG, NODES, SPACE, Cluster, Failure, Pods, demand, eventually, run
from load import Load
from metrics import Metrics, objects

CHART = "deploy/helm/headcount"
WINDOW = 10
KAFKA = f"{HOST}:9092"
VALUES = {
    "fullnameOverride": "headcount",
    "image": {"repository": IMAGE, "tag": "1", "pullPolicy": "Never"},
    "replicas": 3,
    "secrets": {"redis-url": {"name": "headcount", "key": "redis-url"}},
    # On a busy machine Redis may take longer than 350 ms. That is not what is tested here.
    "config": {"mode": "exact", "window": f"{WINDOW}s", "kafka-brokers": KAFKA, "max-counters": 100, "redis-timeout": "2s"},
    # Small enough for six pods on two nodes. Memory has the chart's limit.
    "resources": {"requests": {"cpu": "100m"}},
}
# A window that ended is in Kafka after that time at the latest: the lease of a dead leader, the wait of the next, and more
# for a busy machine.
CLOSE = 60


def http(url):
    """The status and the body."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Test:
    def __init__(self, cluster):
        self.cluster, self.load, self.failed = cluster, None, False
        self.checked = 0  # Windows that were compared.
        self.killed = []  # Times at which a pod was killed by force.
        self.judged = 0  # Failures of the load that a step has looked at.
        self.values = DISK / "values.json"
        self.values.write_text(json.dumps(VALUES))

    # What the cluster has.

    def kubectl(self, *arguments, **options):
        return self.cluster.kubectl("--namespace", SPACE, *arguments, **options)

    def helm(self, *arguments):
        return self.cluster.helm("--namespace", SPACE, *arguments, seconds=400)

    def pods(self):
        return self.cluster.get("pods", "--namespace", SPACE)["items"]

    def names(self):
        return {pod["metadata"]["name"] for pod in self.pods()}

    def on(self, node):
        return {pod["metadata"]["name"] for pod in self.pods() if pod["spec"].get("nodeName") == node}

    def settled(self, number):
        """Whether that many pods run, all ready, and none stops."""
        pods = self.pods()
        return len(pods) == number and all(is_ready(pod) for pod in pods)

    def wait_until_settled(self, number=3):
        eventually(f"{number} pods, all ready", lambda: self.settled(number), 240, 0.5)

    def pid(self, pod):
        """The process of the service in a pod."""
        pod = self.cluster.get("pod", pod, "--namespace", SPACE)
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        for line in self.cluster.ctr(pod["spec"]["nodeName"], "tasks", "list").splitlines():
            words = line.split()
            if words[0] == container:
                return int(words[1])
        raise Failure(f"no process of {pod['metadata']['name']}")

    # What Kafka has.

    def records(self):
        """All windows in the topic: start, count, headers."""
        format = '{"value": %s, "headers": "%h"}\n'
        text = run("kcat", "-C", "-b", KAFKA, "-t", "headcount.unique-counts", "-o", "beginning", "-e", "-q",
                   "-X", "isolation.level=read_committed", "-f", format)
        records = []
        for line in text.splitlines():
            record = json.loads(line)
            start = datetime.fromisoformat(record["value"]["timestamp"]).timestamp()
            headers = dict(header.split("=", 1) for header in record["headers"].split(","))
            records.append((int(start), record["value"]["unique_request_count"], headers))
        return records

    def leader(self):
        """The pod that published the last window."""
        return self.records()[-1][2]["instance"].split("/")[0]

    def windows_are_right(self, until):
        """Each window up to a time is in Kafka once, in order, with the count of the ids that were sent in it."""
        last = int(until // WINDOW) * WINDOW
        records = eventually(f"the window {stamp(last)} in Kafka", lambda: self.reaches(last), CLOSE + 2 * WINDOW, 1)
        starts = [start for start, _, _ in records]
        expected = list(range(starts[0], starts[-1] + WINDOW, WINDOW))
        demand(starts == expected, f"windows in Kafka: {[stamp(start) for start in starts]}")
        demand(starts[0] <= self.load.began, "the first window of the load is missing")
        ids = 0
        for start, count, headers in records:
            # The load's notes of later windows are not complete yet.
            if start > last:
                break
            least, most = self.load.bounds(start)
            demand(least <= count <= most, f"{stamp(start)} has {count} ids; {least} to {most} were sent")
            complete = start == starts[0] or any(at - 2 * WINDOW < start < at + WINDOW for at in self.killed)
            demand(headers["complete"] == "true" or complete, f"{stamp(start)} is incomplete")
            ids += count
        self.checked = len(expected)
        self.verify()
        return ids

    def reaches(self, last):
        self.cluster.is_up()
        records = self.records()
        return records if records and records[-1][0] >= last else None

    def verify(self):
        url = f"redis://:{self.cluster.password}@{HOST}:6379"
        command = [DISK / "headcount", "verify", "--kafka-brokers", KAFKA, "--mode", "exact", "--window", f"{WINDOW}s"]
        told = run(*command, "--redis-timeout", "5s", env=os.environ | {"HEADCOUNT_REDIS_URL": url})
        for line in ("gaps: none", "repeats: none", "out of order: none"):
            demand(f"ok   {line}" in told, f"headcount verify: {told}")

    # Steps. Each is a check with a name, and returns what it found.

    def under_load(self, step, may_fail=False):
        """Runs a step while the load goes on. Then each answer must have been `ok`, and each window right."""
        before, gone_before, began = self.load.totals(), set(self.watch.gone), time.time()
        found = [step()]
        seconds = time.time() - began
        # Some answers after the step, too.
        sent = self.load.totals()["sent"] + 100
        eventually("more requests", lambda: self.load.totals()["sent"] >= sent)
        if not may_fail:
            gone = self.watch.known - self.names() - gone_before
            self.ended_in_order(gone)
            found += [f"{len(gone)} pods ended with 0"] if gone else []
        self.windows_are_right(time.time())
        after = self.load.totals()
        difference = {name: after[name] - before[name] for name in after}
        self.failures_are_expected(may_fail)
        return (f"{'; '.join(found)}; {seconds:.0f} s; {difference['ok']} answers ok, {difference['failures']} failed, "
                f"{difference['repeated']} repeated, {difference['replaced']} connections replaced; "
                f"{self.checked} windows right")

    def failures_are_expected(self, may_fail=False):
        """Looks at all failures that no step has looked at before."""
        failures, self.judged = self.load.failures[self.judged:], len(self.load.failures)
        for at, why in failures:
            demand(may_fail, f"{len(failures)} requests failed, the first at {stamp(at)}: {why}")
            # A connection to the killed process may break. An answer is never wrong.
            expected = why.startswith(("broken", "no connection")) and at < self.killed[-1] + 15
            demand(expected, f"{at - self.killed[-1]:.1f} s after the kill a request failed: {why}")

    def ended_in_order(self, names):
        """A pod that Kubernetes had to kill has the exit code 137."""
        exits = self.watch.exits(names)
        demand(all(exit == (0, "Completed") for exit in exits.values()), f"pods did not end in order: {exits}")

    def refuses_wrong_value(self):
        values = ["--values", self.values, "--set", "config.mode=bloom"]
        try:
            self.helm("install", SPACE, CHART, *values)
        except Failure as failure:
            demand("mode" in str(failure), f"helm refused something else: {failure}")
        else:
            raise Failure("helm installed config.mode=bloom")
        left = self.cluster.get("deployments,services,pods", "--namespace", SPACE)["items"]
        demand(not left, f"{len(left)} objects are there nevertheless")
        return "config.mode=bloom: nothing was made"

    def namespace_is_restricted(self):
        try:
            self.kubectl("run", "other", "--image", f"{IMAGE}:1", "--dry-run=server")
        except Failure as failure:
            demand('violates PodSecurity "restricted' in str(failure), f"refused for something else: {failure}")
        else:
            raise Failure("the namespace takes any pod")
        return "it refuses a pod without the chart's security"

    def as_the_readme_says(self):
        """Its three commands after the image is in the registry, as they stand there."""
        section = Path("README.md").read_text().split("**With Helm**")[1].split("```")[1]
        commands = [shlex.split(line[2:], comments=True) for line in section.splitlines() if line.startswith("$ ")]
        (helm, *install), (kubectl, *forward), curl = commands[1:]
        demand((helm, kubectl, curl[0]) == ("helm", "kubectl", "curl"), f"the README has {commands}")
        began = time.time()
        self.helm(*install)
        seconds = time.time() - began
        with open(LOG / "port-forward", "w") as log:
            forwarding = subprocess.Popen([self.cluster.programs / kubectl, "--namespace", SPACE, *forward], stdout=log, stderr=log)
        try:
            eventually("the forwarded port", lambda: "Forwarding" in (LOG / "port-forward").read_text())
            demand(run(*curl, "--silent", "--show-error").strip() == "ok", "it does not count")
        finally:
            forwarding.terminate()
            forwarding.wait()
        name = install[1]
        self.helm("uninstall", name, "--wait", "--timeout", "2m")
        eventually("the pod to go", lambda: not self.names())
        return f"one instance ready after {seconds:.0f} s, ok over a forwarded port"

    def install(self):
        self.kubectl("create", "secret", "generic", "headcount",
                     f"--from-literal=redis-url=redis://:{self.cluster.password}@{HOST}:6379")
        began = time.time()
        self.helm("install", SPACE, CHART, "--values", self.values, "--wait", "--timeout", "5m")
        seconds = time.time() - began
        demand(self.settled(3), "helm says that all is ready, and it is not")
        self.watch = Pods(self.cluster)
        self.watch.start()
        service = self.cluster.get("service", "headcount", "--namespace", SPACE)["spec"]
        self.load = Load((service["clusterIP"], service["ports"][0]["port"]), WINDOW)
        self.load.start()
        nodes = [len(self.on(node)) for node in NODES]
        demand(min(nodes) >= 1, f"pods on the nodes: {nodes}")
        return f"3 pods ready after {seconds:.0f} s, {nodes[0]} and {nodes[1]} on the nodes"

    def probes(self):
        for pod in self.pods():
            address = pod["status"]["podIP"]
            demand(http(f"http://{address}:9100/readyz")[0] == 200, "the admin port does not answer /readyz")
            demand(http(f"http://{address}:8080/readyz")[0] == 404, "the port of clients answers /readyz")
            container = pod["spec"]["containers"][0]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("livenessProbe", "readinessProbe"):
                demand(ports[container[probe]["httpGet"]["port"]] == 9100, f"{probe} asks another port")
        return "on port 9100; port 8080 answers /readyz with 404"

    def rights(self):
        for name in self.names():
            process = Path("/proc", str(self.pid(name)))
            status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
            demand(status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4, "another user")
            demand(all(int(status[set_of], 16) == 0 for set_of in ("CapEff", "CapPrm", "CapBnd")), "it has capabilities")
            demand(status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", "it may get privileges")
            root = [line.split() for line in (process / "mountinfo").read_text().splitlines() if line.split()[4] == "/"]
            demand("ro" in root[-1][5].split(","), "its root file system can be written")
        return "user 10001, no capabilities, seccomp, read-only root"

    def secrets(self):
        for name in self.names():
            process = Path("/proc", str(self.pid(name)))
            file = process / "root/run/secrets/headcount/redis-url"
            demand(self.cluster.password in file.read_text(), "the file has another URL")
            demand(file.stat().st_mode & 0o007 == 0, "everybody can read the file")
            variables = (process / "environ").read_text()
            demand(self.cluster.password not in variables, "the password is in a variable")
            demand("HEADCOUNT_REDIS_URL=file:/run/secrets/headcount/redis-url" in variables, "no path in the variable")
        return "the URL of Redis is a file, and in no variable"

    def logs(self):
        lines = [line for name in self.names() for line in self.kubectl("logs", name).splitlines()]
        demand(len(lines) >= 3, "hardly any log")
        for line in lines:
            demand(isinstance(json.loads(line), dict), f"not an object: {line}")
            demand(self.cluster.password not in line, "the password is in the log")
        return f"{len(lines)} lines of JSON"

    def one_number(self):
        until = int(self.load.began // WINDOW + 3) * WINDOW + 0.1
        eventually("whole windows of the load", lambda: time.time() > until)
        self.windows_are_right(until - WINDOW)
        # A window that was all load: instances that counted each on its own would have more ids together.
        _, count, headers = next(record for record in self.records() if record[0] >= self.load.began)
        accepted = int(headers["accepted_ids"])
        demand(count > 100 and accepted > 2.5 * count, f"{accepted} ids were accepted, {count} different ones")
        shares = []
        for pod in self.pods():
            metrics = http(f"http://{pod['status']['podIP']}:9100/metrics")[1].splitlines()
            shares += [int(float(line.split()[1])) for line in metrics if line.startswith("headcount_accepted_ids_total")]
        demand(len(shares) == 3 and min(shares) > 50, f"accepted by the instances: {shares}")
        return f"{count} ids of {accepted} requests in a window; the instances accepted {shares}"

    def restart(self):
        before = self.names()
        self.kubectl("rollout", "restart", "deployment/headcount")
        self.kubectl("rollout", "status", "deployment/headcount", "--timeout=240s", seconds=250)
        self.wait_until_settled()
        demand(not before & self.names(), "old pods are still there")
        return "3 new pods"

    def upgrade(self):
        self.helm("upgrade", SPACE, CHART, "--values", self.values, "--wait",
                  "--set", "config.max-counters=200", "--set-string", "image.tag=2")
        self.wait_until_settled()
        demand(self.running() == {(f"{IMAGE}:2", "200")}, f"running: {self.running()}")
        return "another image, and max-counters 200"

    def roll_back(self):
        self.helm("rollback", SPACE, "--wait")
        self.wait_until_settled()
        demand(self.running() == {(f"{IMAGE}:1", "100")}, f"running: {self.running()}")
        return "the first image, and max-counters 100"

    def running(self):
        """Image and --max-counters of the processes."""
        running = set()
        for pod in self.pods():
            variables = Path("/proc", str(self.pid(pod["metadata"]["name"])), "environ").read_text().split("\0")
            limit = next(variable for variable in variables if variable.startswith("HEADCOUNT_MAX_COUNTERS="))
            running.add((pod["spec"]["containers"][0]["image"], limit.split("=")[1]))
        return running

    def delete_by_force(self):
        leader = self.leader()
        process = Path("/proc", str(self.pid(leader)))
        self.killed.append(time.time())
        self.kubectl("delete", "pod", leader, "--grace-period=0", "--force")
        # The pod has gone from the API at once, its process has not.
        eventually("the end of the process", lambda: not process.exists())
        seconds = time.time() - self.killed[-1]
        self.wait_until_settled()
        return f"the leader, whose process ended {seconds:.1f} s later"

    def kill_process(self):
        leader = self.leader()
        pid = self.pid(leader)
        self.killed.append(time.time())
        os.kill(pid, signal.SIGKILL)

        def restarted():
            pod = self.cluster.get("pod", leader, "--namespace", SPACE)
            return pod["status"]["containerStatuses"][0]["restartCount"] == 1 and is_ready(pod)

        eventually("another container in the pod", restarted)
        self.wait_until_settled()
        demand(self.pid(leader) != pid, "it is the same process")
        return "the leader's process, kill -9; its pod has a new one"

    def drain(self):
        node = max(NODES, key=lambda node: len(self.on(node)))
        pods = self.on(node)
        demand(len(pods) >= 2, "the budget would hold back nothing")
        command = [self.cluster.programs / "kubectl", "drain", node, "--ignore-daemonsets", "--timeout=200s"]
        drain = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        fewest = 3
        while drain.poll() is None:
            fewest = min(fewest, sum(is_ready(pod) for pod in self.pods()))
        told = drain.stdout.read()
        demand(drain.returncode == 0, f"drain: {told[-600:]}")
        refused = told.count("would violate the pod's disruption budget")
        demand(refused >= 1, f"the budget held back nothing: {told}")
        demand(fewest >= 2, f"only {fewest} pods were ready at a time")
        self.wait_until_settled()
        demand(not self.on(node), f"{node} still has pods")
        self.kubectl("uncordon", node)
        return f"{len(pods)} pods moved from {node}, the budget refused {refused} times, {fewest} or more ready"

    def scale(self):
        for number in (5, 2):
            self.kubectl("scale", "deployment/headcount", f"--replicas={number}")
            self.wait_until_settled(number)
        return "from 3 to 5 and to 2, by hand"

    def autoscale(self):
        """Kubernetes goes to one instance first, as docs/deployment.md says. Then the autoscaler decides."""
        certificate = DISK / "metrics.pem"
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=metrics", "-keyout", certificate,
            "-out", certificate)
        metrics = Metrics(HOST, certificate, self.pods)
        metrics.millicores = 140
        for thing in objects(HOST):
            self.cluster.kubectl("apply", "--filename", "-", input=json.dumps(thing))
        # The chart's default takes one instance a minute away, after five minutes.
        down = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]}
        values = {"enabled": True, "minReplicas": 2, "maxReplicas": 5, "behavior": {"scaleDown": down}}
        self.helm("upgrade", SPACE, CHART, "--values", self.values, "--set-json", f"autoscaling={json.dumps(values)}", "--wait")
        self.wait_until_settled(2)
        # 70 % of the 100 millicores that a pod asks for: 280 need four pods, 600 more than there may be.
        for millicores, number in ((280, 4), (600, 5), (200, 3), (10, 2)):
            metrics.millicores = millicores
            self.wait_until_settled(number)
        return "by CPU to 2, 4, 5, 3 and 2"

    def uninstall(self):
        """The load ends first: then there is no Service."""
        pods = self.names()
        self.load.stop()
        self.failures_are_expected()
        self.helm("uninstall", SPACE, "--wait", "--timeout", "2m")
        eventually("the pods to go", lambda: not self.names())
        self.ended_in_order(pods)
        label = f"app.kubernetes.io/instance={SPACE}"
        kinds = "all,serviceaccounts,poddisruptionbudgets,configmaps,endpointslices,secrets"
        left = eventually_empty(lambda: self.cluster.get(kinds, "--selector", label, "--namespace", SPACE)["items"])
        demand(not left, f"left: {[thing['kind'] for thing in left]}")
        return f"nothing is left, {len(pods)} pods ended with 0"

    def install_again(self):
        """A stop leaves the running window open. The next instance publishes it."""
        self.killed.append(self.load.ended)  # No instance was running, for a part of these windows.
        self.helm("install", SPACE, CHART, "--values", self.values, "--wait", "--timeout", "5m")
        self.killed.append(time.time())
        ids = self.windows_are_right(self.load.ended)
        return f"{self.checked} windows right, {ids} ids"


def is_ready(pod):
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def stamp(start):
    return datetime.fromtimestamp(start).strftime("%H:%M:%S")


def eventually_empty(items, seconds=30):
    until = time.monotonic() + seconds
    while (left := items()) and time.monotonic() < until:
        time.sleep(0.5)
    return left


def steps(test):
    yield "wrong value", test.refuses_wrong_value
    yield "restricted", test.namespace_is_restricted
    yield "as in README", test.as_the_readme_says
    yield "install", test.install
    yield "one number", test.one_number
    yield "probes", test.probes
    yield "rights", test.rights
    yield "secrets", test.secrets
    yield "logs", test.logs
    yield "restart", lambda: test.under_load(test.restart)
    yield "upgrade", lambda: test.under_load(test.upgrade)
    yield "roll back", lambda: test.under_load(test.roll_back)
    yield "delete --force", lambda: test.under_load(test.delete_by_force, may_fail=True)
    yield "kill -9", lambda: test.under_load(test.kill_process, may_fail=True)
    yield "drain", lambda: test.under_load(test.drain)
    yield "scale", lambda: test.under_load(test.scale)
    yield "autoscale", lambda: test.under_load(test.autoscale)
    yield "uninstall", test.uninstall
    yield "install again", test.install_again


def keep_logs(test):
    """The logs of the pods, and what happened to them, beside those of the cluster."""
    (LOG / "events").write_text(test.kubectl("get", "events", "--sort-by=.lastTimestamp"))
    for name in test.names():
        (LOG / name).write_text(test.kubectl("logs", name))


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--programs", "--helm", "--group"):
        parser.add_argument(flag, required=True)
    given = parser.parse_args()
    began = time.monotonic()
    cluster = Cluster(given.programs, given.helm, given.group)
    name, test = "the cluster", None
    try:
        cluster.up()
        cluster.kubectl("create", "namespace", SPACE)
        cluster.kubectl("label", "namespace", SPACE, "pod-security.kubernetes.io/enforce=restricted")
        print(f"ok    {name:14} {len(NODES)} nodes, Redis and Kafka after {time.monotonic() - began:.0f} s", flush=True)
        test = Test(cluster)
        for name, step in steps(test):
            print(f"ok    {name:14} {step()}", flush=True)
    except (Failure, subprocess.TimeoutExpired) as failure:
        print(f"FAIL  {name:14} {failure}", file=sys.stderr)
        try:
            keep_logs(test)
        except Exception as error:
            print(f"no logs of pods: {error}", file=sys.stderr)
        sys.exit(1)
    totals = test.load.totals()
    print(f"{totals['sent']} requests over {totals['connections']} connections: {totals['ok']} ok, {totals['failures']} failed, "
          f"{totals['repeated']} repeated, {totals['replaced']} connections replaced; {time.monotonic() - began:.0f} s")


main()
