"""The checks of scripts/chart-lint. It starts this script, and says what it needs."""

import argparse
import filecmp
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

CHART = "deploy/helm/headcount"
SECRETS = "/run/secrets/headcount/"
# Kinds that Kubernetes itself does not know.
OF_OPERATOR = ("ServiceMonitor", "PrometheusRule")


class Failure(Exception):
    pass


def demand(holds, message):
    if not holds:
        raise Failure(message)


class Repository:
    """The files that the checks look at: those of the checkout, or a damaged copy."""

    def __init__(self, root, tools, kubernetes):
        self.root, self.tools, self.kubernetes = Path(root), tools, kubernetes
        self.rendered, self.parsed = {}, {}

    def text(self, path):
        return (self.root / path).read_text()

    def cases(self):
        """The files of the chart's ci directory, by name."""
        return {path.stem: path for path in sorted((self.root / CHART / "ci").glob("*.yaml"))}

    def helm(self, *arguments):
        command = [self.tools / "bin/helm", *arguments]
        # helm ends before its garbage is worth a collection.
        return subprocess.run(command, capture_output=True, text=True, cwd=self.root, env=os.environ | {"GOGC": "off"})

    def template(self, *arguments, chart=CHART):
        """What helm makes of the chart. A helm that `go install` made has no version of Kubernetes of its own."""
        return self.helm("template", "counts", chart, "--namespace", "prod", "--kube-version", self.kubernetes[-1], *arguments)

    def text_of(self, name):
        if name not in self.rendered:
            done = self.template("--values", self.cases()[name])
            demand(done.returncode == 0, f"ci/{name}.yaml cannot be rendered: {done.stderr.strip()}")
            self.rendered[name] = done.stdout
        return self.rendered[name]

    def objects(self, name):
        if name not in self.parsed:
            self.parsed[name] = [object for object in yaml.safe_load_all(self.text_of(name)) if object]
        return self.parsed[name]

    def one(self, name, kind, suffix=""):
        """The only object of this kind whose name ends like this."""
        found = [o for o in self.objects(name) if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
        demand(len(found) == 1, f"ci/{name}.yaml: {len(found)} objects {kind} {suffix}")
        return found[0]

    def pod(self, name):
        return self.one(name, "Deployment")["spec"]["template"]["spec"]

    def variables(self, name):
        env = self.pod(name)["containers"][0]["env"]
        names = [variable["name"] for variable in env]
        demand(len(set(names)) == len(names), f"ci/{name}.yaml: a variable is set twice: {names}")
        return {variable["name"]: variable["value"] for variable in env}

    def flags(self):
        """The flags of the service by the variables in its source; hidden ones are old names."""
        text = "".join(
            self.text(f"src/cli/flags/{file}.rs")
            for file in ["callbacks", "counting", "http", "logging", "publishing", "redis", "serve"]
        )
        arguments = re.findall(r"#\[arg\((.*?)\)\]", text, re.DOTALL)
        shown = [argument for argument in arguments if "hide = true" not in argument]
        names = [re.search(r'env = "HEADCOUNT_(\w+)"', argument) for argument in shown]
        return {name[1].lower().replace("_", "-") for name in names if name}


def lints(repository):
    for name, path in {"the defaults": None, **repository.cases()}.items():
        values = ["--values", path] if path else []
        done = repository.helm("lint", "--strict", "--kube-version", repository.kubernetes[-1], CHART, *values)
        demand(done.returncode == 0, f"{name}: {done.stdout.strip()}")
    return f"the defaults, and {len(repository.cases())} files of values"


def schemas(repository):
    demand(len(repository.cases()) >= 5, "fewer than five files of values")
    location = f"{repository.tools}/schemas"
    total = 0
    for name in repository.cases():
        for version in repository.kubernetes:
            command = [
                f"{repository.tools}/bin/kubeconform", "-strict", "-output", "json", "-summary",
                "-kubernetes-version", version,
                "-schema-location", location + "/{{ .NormalizedKubernetesVersion }}{{ .StrictSuffix }}/{{ .ResourceKind }}{{ .KindSuffix }}.json",
                "-schema-location", location + "/operator/{{ .ResourceKind }}{{ .KindSuffix }}.json",
            ]  # fmt: skip
            done = subprocess.run(command, input=repository.text_of(name), capture_output=True, text=True)
            answer = json.loads(done.stdout)
            wrong = [f"{r['kind']} {r['name']}: {r['msg']}" for r in answer["resources"]]
            demand(done.returncode == 0 and not wrong, f"ci/{name}.yaml, Kubernetes {version}: {wrong} {done.stderr}")
            # A summary of nothing is valid too.
            demand(answer["summary"]["valid"] == len(repository.objects(name)) > 2, f"ci/{name}.yaml: {answer['summary']}")
            total += answer["summary"]["valid"]
    kinds = {o["kind"] for name in repository.cases() for o in repository.objects(name)}
    expected = {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "Service",
        "ServiceAccount", *OF_OPERATOR,
    }  # fmt: skip
    demand(kinds == expected, f"kinds that differ: {kinds ^ expected}")
    return f"{total} objects of {len(kinds)} kinds, Kubernetes {' and '.join(repository.kubernetes)}"


def refused(repository):
    lines, base = [], None
    for line in repository.text("tests/chart/refused.txt").splitlines():
        if line.startswith("["):
            base = repository.cases()[line.strip("[]")]
        elif line[:1] not in ("", "#"):
            part, arguments = line.split(" => ")
            # shlex would take the backslashes of --set away.
            lines.append((part, base, shlex.split(arguments.replace("\\", "\\\\"))))

    def look(line):
        part, base, arguments = line
        done = repository.template("--values", base, *arguments)
        message, shown = done.stderr, " ".join(arguments)
        if done.returncode == 0:
            return f"accepted: {shown}"
        if part not in message:
            return f"{shown}: the message lacks “{part}”: {message.strip()}"
        return f"{shown}: the message shows the secret: {message.strip()}" if "hidden" in message else None

    with ThreadPoolExecutor(2) as pool:
        wrong = [problem for problem in pool.map(look, lines) if problem]
    demand(not wrong, "\n  ".join(wrong))
    # So that a list that was emptied by mistake does not pass.
    demand(len(lines) >= 80, f"only {len(lines)} refused values")
    return f"{len(lines)} values and combinations"


def flags(repository):
    known = repository.flags()
    demand(len(known) > 50, f"only {len(known)} flags in the source: has its form changed?")
    documented = set(re.findall(r"^\| `--([a-z-]+)", repository.text("docs/configuration.md").split("\n## Counting")[1], re.M))
    demand(known == documented, f"flags in the source or in docs/configuration.md only: {known ^ documented}")
    schema = json.loads(repository.text(f"{CHART}/values.schema.json"))
    allowed = set(schema["properties"]["config"]["properties"])
    demand(known == allowed, f"flags of the service or of values.schema.json only: {known ^ allowed}")

    values = yaml.safe_load(repository.cases()["everything"].read_text())
    secrets = {flag for flag in values["secrets"] if flag != "kafka-option"}
    variables = repository.variables("everything")
    for flag in sorted(known):
        variable = "HEADCOUNT_" + flag.upper().replace("-", "_")
        demand(variable in variables, f"ci/everything.yaml: {variable} is not set")
        if flag != "kafka-option":
            expected = f"file:{SECRETS}{flag}" if flag in secrets else as_text(flag, values["config"][flag])
            demand(variables[variable] == expected, f"{variable} is {variables[variable]}, not {expected}")
    return f"{len(known)} flags, all set by ci/everything.yaml"


def as_text(flag, value):
    if isinstance(value, bool):
        return "true" if flag in ["no-ui", "allow-sketches"] else "on" if value else "off"
    return ",".join(value) if isinstance(value, list) else str(value)


def secrets_are_files(repository):
    """Each file that a variable names is mounted from a Secret."""
    total = 0
    for name in repository.cases():
        pod, named = repository.pod(name), set()
        for variable, value in repository.variables(name).items():
            named |= {path for path in re.findall(re.escape(SECRETS) + r"([\w./-]+)", value)}
        [container] = pod["containers"]
        demand(all("valueFrom" not in variable for variable in container["env"]), f"ci/{name}.yaml: a secret is in a variable")
        volumes = [volume for volume in pod.get("volumes", []) if volume["name"] == "secrets"]
        items = [
            item["path"]
            for volume in volumes
            for source in volume["projected"]["sources"]
            for item in next(iter(source.values()))["items"]
        ]
        demand(sorted(items) == sorted(named), f"ci/{name}.yaml: files {sorted(items)}, named {sorted(named)}")
        mounts = [mount for mount in container.get("volumeMounts", []) if mount["name"] == "secrets"]
        demand(len(mounts) == len(volumes), f"ci/{name}.yaml: the volume of secrets is not mounted")
        for mount in mounts:
            demand(mount["mountPath"] + "/" == SECRETS and mount["readOnly"], f"ci/{name}.yaml: {mount}")
        total += len(items)
    demand(total > 10, f"only {total} files")
    return f"{total} files"


def restricted(repository):
    """What Pod Security asks for at its level "restricted", a root that is read-only, and no token."""
    for name in repository.cases():
        pod, where = repository.pod(name), f"ci/{name}.yaml: "
        for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers"]:
            demand(field not in pod, where + field)
        demand(pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001, where + "user")
        demand(pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where + "seccompProfile")
        demand(pod["automountServiceAccountToken"] is False, where + "automountServiceAccountToken")
        demand(pod["enableServiceLinks"] is False, where + "enableServiceLinks")
        [container] = pod["containers"]
        expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        demand(container["securityContext"] == expected, where + f"securityContext is {container['securityContext']}")
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        demand(kinds <= {"emptyDir", "projected", "persistentVolumeClaim"}, where + f"volumes {kinds}")
        for account in [o for o in repository.objects(name) if o["kind"] == "ServiceAccount"]:
            demand(account["automountServiceAccountToken"] is False, where + "the ServiceAccount's token")
    return f"{len(repository.cases())} pods"


def seconds(text):
    units = {"ms": 0.001, "s": 1, "min": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|s|min|h)", text))


def stops_in_time(repository):
    graces = []
    for name in repository.cases():
        variables, pod = repository.variables(name), repository.pod(name)
        expected = math.ceil(seconds(variables["HEADCOUNT_SHUTDOWN_TIMEOUT"])) + 5
        grace = pod["terminationGracePeriodSeconds"]
        demand(grace == expected, f"ci/{name}.yaml: terminationGracePeriodSeconds is {grace}, not {expected}")
        demand(seconds(variables["HEADCOUNT_DRAIN_DELAY"]) >= 5, f"ci/{name}.yaml: the drain is shorter than 5 s")
        together = "HEADCOUNT_REDIS_URL" in variables
        strategy = repository.one(name, "Deployment")["spec"]["strategy"]
        expected = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}} if together else {"type": "Recreate"}
        demand(strategy == expected, f"ci/{name}.yaml: strategy is {strategy}")
        graces.append(grace)
    demand(len(set(graces)) > 2, f"all files of values have the same: {graces}")
    return f"terminationGracePeriodSeconds {', '.join(map(str, graces))}"


def ports(repository):
    """Probes, Services, the Ingress and the monitor lead to the addresses that the service listens at."""
    for name in repository.cases():
        variables, [container] = repository.variables(name), repository.pod(name)["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port, variable in [("http", "HEADCOUNT_LISTEN"), ("admin", "HEADCOUNT_ADMIN_LISTEN")]:
            demand(ports[port] == int(variables[variable].rsplit(":")[-1]), f"ci/{name}.yaml: {port} is {ports[port]}")
        routes = repository.text("src/http/routes/ops.rs") + repository.text("src/http/server/late.rs")
        for probe, path in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
            get = container[probe]["httpGet"]
            demand(get == {"path": path, "port": "admin"} and f'"{path}"' in routes, f"ci/{name}.yaml: {probe} asks {get}")
        selector = repository.one(name, "Deployment")["spec"]["selector"]["matchLabels"]
        labels = repository.one(name, "Deployment")["spec"]["template"]["metadata"]["labels"]
        demand(selector.items() <= labels.items(), f"ci/{name}.yaml: the Deployment does not select its pods")
        for object in repository.objects(name):
            selects = object.get("spec", {}).get("podSelector", object.get("spec", {}).get("selector"))
            if object["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
                demand(selects.get("matchLabels", selects) == selector, f"ci/{name}.yaml: {object['kind']} selects {selects}")
            if object["kind"] == "Service":
                [port] = object["spec"]["ports"]
                is_admin = object["metadata"]["name"].endswith("-admin")
                demand(port["targetPort"] == port["name"] == ("admin" if is_admin else "http"), f"ci/{name}.yaml: {port}")
    monitor = repository.one("everything", "ServiceMonitor")
    admin = repository.one("everything", "Service", "-admin")
    demand(monitor["spec"]["selector"]["matchLabels"].items() <= admin["metadata"]["labels"].items(), "the monitor selects no Service")
    [endpoint] = monitor["spec"]["endpoints"]
    demand(endpoint["port"] == admin["spec"]["ports"][0]["name"], "the monitor's port")
    [job] = endpoint["relabelings"]
    demand(job == {"targetLabel": "job", "replacement": "headcount-visitors"}, f"the monitor's job: {job}")
    return "probes, Services, the monitor"


def copies(repository):
    """The chart can hold only files below itself. So it has copies, and they must be those of the repository."""
    files = repository.root / CHART / "files"
    dashboards = sorted((repository.root / "grafana/dashboards").glob("*.json"))
    pairs = [(repository.root / f"prometheus/{name}.yml", files / f"{name}.yml") for name in ["alerts", "rules"]]
    pairs += [(path, files / "dashboards" / path.name) for path in dashboards]
    for original, copy in pairs:
        equal = copy.exists() and filecmp.cmp(original, copy, shallow=False)
        demand(equal, f"{copy.relative_to(repository.root)} differs: cp {original.relative_to(repository.root)} there")
    there = {path for path in files.rglob("*") if path.is_file()}
    demand(there == {copy for _, copy in pairs}, f"files without an original: {there - {copy for _, copy in pairs}}")

    for name in ["alerts", "rules"]:
        rendered = repository.one("everything", "PrometheusRule", f"-{name}")["spec"]
        original = yaml.safe_load(repository.text(f"prometheus/{name}.yml"))
        demand(rendered == original, f"the rendered {name} differ from prometheus/{name}.yml")
    data = repository.one("everything", "ConfigMap", "-dashboards")["data"]
    expected = {f"headcount-{path.name}": path.read_text() for path in dashboards}
    demand(data == expected, "the rendered dashboards differ from grafana/dashboards")
    rules = yaml.safe_load(repository.text("prometheus/alerts.yml"))["groups"]
    return f"{sum(len(group['rules']) for group in rules)} alerts, the recorded series, {len(dashboards)} dashboards"


def versions(repository):
    chart = yaml.safe_load(repository.text(f"{CHART}/Chart.yaml"))
    [version] = re.findall(r'^version = "(.*)"', repository.text("Cargo.toml"), re.M)
    demand(chart["appVersion"] == version, f"appVersion is {chart['appVersion']}, and Cargo.toml has {version}")
    oldest = repository.kubernetes[0]
    demand(chart["kubeVersion"] == f">={oldest}-0", f"kubeVersion is {chart['kubeVersion']}, and the oldest schema is of {oldest}")
    return f"{version}, Kubernetes {chart['kubeVersion']}"


def package(repository):
    """The package has all files but those of ci, and renders the same."""
    with tempfile.TemporaryDirectory() as to:
        done = repository.helm("package", CHART, "--destination", to)
        demand(done.returncode == 0, done.stderr)
        [archive] = Path(to).iterdir()
        with tarfile.open(archive) as tar:
            packed = {name.removeprefix("headcount/") for name in tar.getnames()}
        chart = repository.root / CHART
        files = {str(path.relative_to(chart)) for path in chart.rglob("*") if path.is_file()}
        expected = {path for path in files if not path.startswith("ci/")}
        demand(packed == expected, f"files that are wrongly there or not there: {packed ^ expected}")
        done = repository.template("--values", repository.cases()["everything"], chart=str(archive))
        demand(done.stdout == repository.text_of("everything"), "the package renders something else than the directory")
        return f"{archive.name}, {archive.stat().st_size // 1024} KB"


def binary(repository):
    """The service accepts the variables that the chart sets. It exits with 2 if it does not."""
    headcount = os.environ.get("HEADCOUNT_BIN")
    if not headcount:
        return None
    secrets = {
        "redis-url": "redis://:password@127.0.0.1:1",
        "api-token": "0123456789abcdef",
        "read-token": "fedcba9876543210",
        "id-key": "00112233445566778899aabbccddeeff",
        "callback-secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    }
    for name in repository.cases():
        with tempfile.TemporaryDirectory() as directory:
            variables = repository.variables(name)
            for flag, secret in secrets.items():
                Path(directory, flag).write_text(secret + "\n")
            variables = {variable: value.replace(SECRETS, directory + "/") for variable, value in variables.items()}
            # Not these: the check would write there, wait, or need certificates.
            variables |= {"HEADCOUNT_REDIS_WAIT": "0s", "HEADCOUNT_REDIS_TIMEOUT": "100ms"}
            if "HEADCOUNT_LOG_DIR" in variables:
                variables["HEADCOUNT_LOG_DIR"] = directory
            if not variables.get("HEADCOUNT_REDIS_URL", "file:").startswith("file:"):
                variables["HEADCOUNT_REDIS_URL"] = re.sub(r"redis-\d\.redis", "127.0.0.1:1", variables["HEADCOUNT_REDIS_URL"])
            for variable in ["HEADCOUNT_KAFKA_BROKERS", "HEADCOUNT_KAFKA_TOPIC", "HEADCOUNT_KAFKA_COUNTERS_TOPIC", "HEADCOUNT_KAFKA_OPTION"]:
                variables.pop(variable, None)
            done = subprocess.run([headcount, "check"], env=variables, capture_output=True, text=True, timeout=60)
            demand(done.returncode in (0, 1), f"ci/{name}.yaml: headcount refuses its variables: {done.stderr.strip()}")
            # Without Redis, all is well; with it, the check must have come as far as Redis.
            told = done.stdout + done.stderr
            demand("HEADCOUNT_REDIS_URL" not in variables or "reachable" in told or "Redis" in told, f"ci/{name}.yaml: {told}")
    return f"{len(repository.cases())} files of values"


CHECKS = {
    "lint --strict": lints,
    "schemas": schemas,
    "refused": refused,
    "flags": flags,
    "secrets": secrets_are_files,
    "Pod Security": restricted,
    "stop": stops_in_time,
    "ports": ports,
    "copies": copies,
    "versions": versions,
    "package": package,
    "binary": binary,
}

# Damage that a check must find: the check, the file, what to replace there, and by what.
DAMAGE = [
    ("lint --strict", f"{CHART}/Chart.yaml", "apiVersion: v2", "apiVersion: v9"),
    ("lint --strict", f"{CHART}/templates/ingress.yaml", "{{- end }}\n{{- end }}", "{{- end }}"),
    ("schemas", f"{CHART}/templates/services.yaml", "clusterIP: None", "clusterIp: None"),
    ("schemas", f"{CHART}/templates/deployment.yaml", "periodSeconds: 10", "periodSeconds: often"),
    ("schemas", f"{CHART}/templates/networkpolicy.yaml", "podSelector:", "podSelectors:"),
    ("schemas", f"{CHART}/templates/servicemonitor.yaml", "path: /metrics", "paths: /metrics"),
    ("schemas", f"{CHART}/files/alerts.yml", "annotations:", "notes:"),
    ("schemas", f"{CHART}/ci/everything.yaml", "networkPolicy:\n  enabled: true", "networkPolicy:\n  enabled: false"),
    ("refused", f"{CHART}/values.schema.json", '"enum": ["hll", "exact"]', '"type": "string"'),
    ("refused", f"{CHART}/values.schema.json", '"additionalProperties": false,', ""),
    ("refused", f"{CHART}/templates/_validate.tpl", "gt (int .Values.replicas) 1", "gt (int .Values.replicas) 9"),
    ("refused", f"{CHART}/templates/_validate.tpl", "[?&]pass=", "[?&]word="),
    ("flags", "src/cli/flags/serve.rs", '"HEADCOUNT_DRAIN_DELAY"', '"HEADCOUNT_DRAIN_TIME"'),
    ("flags", f"{CHART}/values.schema.json", '"keep-days":', '"keep-day":'),
    ("flags", f"{CHART}/ci/everything.yaml", "  threads: 4\n", ""),
    ("flags", f"{CHART}/templates/_helpers.tpl", "{{- else }}{{ int64 . }}", "{{- else }}{{ . }}"),
    ("secrets", f"{CHART}/templates/_helpers.tpl", "path: kafka/", "path: broker/"),
    ("secrets", f"{CHART}/templates/deployment.yaml", "mountPath: /run/secrets/headcount", "mountPath: /run/secrets/other"),
    ("Pod Security", f"{CHART}/templates/deployment.yaml", "runAsNonRoot: true", "runAsNonRoot: false"),
    ("Pod Security", f"{CHART}/templates/deployment.yaml", "drop: [ALL]", "drop: [NET_RAW]"),
    ("Pod Security", f"{CHART}/templates/deployment.yaml", "seccompProfile: {type: RuntimeDefault}", "seccompProfile: {type: Unconfined}"),
    ("Pod Security", f"{CHART}/templates/deployment.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("Pod Security", f"{CHART}/templates/serviceaccount.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    ("stop", f"{CHART}/templates/_helpers.tpl", "(add $timeout 999)", "$timeout"),
    ("stop", f"{CHART}/templates/deployment.yaml", '{{ include "headcount.graceSeconds" . }}', "30"),
    ("stop", f"{CHART}/templates/deployment.yaml", "type: Recreate", "type: RollingUpdate"),
    ("ports", f"{CHART}/templates/deployment.yaml", "path: /readyz", "path: /ready"),
    ("ports", f"{CHART}/templates/services.yaml", "targetPort: http", "targetPort: admin"),
    ("ports", f"{CHART}/templates/servicemonitor.yaml", "component: admin", "component: api"),
    ("copies", "prometheus/alerts.yml", "for: 2m", "for: 3m"),
    ("copies", "grafana/dashboards/operations.json", "headcount_info", "headcount_information"),
    ("copies", f"{CHART}/templates/prometheusrules.yaml", "nindent 2", 'replace "critical" "warning" | nindent 2'),
    ("copies", f"{CHART}/templates/dashboards.yaml", "toString $text", 'toString $text | replace "$job" "$jobs"'),
    ("versions", "Cargo.toml", 'version = "', 'version = "9.'),
    ("package", f"{CHART}/.helmignore", "ci/", "ci/*.txt"),
]
WITH_BINARY = [
    ("binary", f"{CHART}/templates/_helpers.tpl", 'ternary "on" "off"', 'ternary "yes" "no"'),
    ("binary", f"{CHART}/ci/everything.yaml", "close-timeout: 15s", "close-timeout: 15w"),
]
COPIED = [CHART, "Cargo.toml", "docs/configuration.md", "grafana", "prometheus", "src/cli/flags", "src/http", "tests/chart"]


def prove(root, tools, kubernetes):
    """Damages a copy in many ways, one after another. Returns what no check found."""
    damage = DAMAGE + (WITH_BINARY if os.environ.get("HEADCOUNT_BIN") else [])
    unproved = set(CHECKS) - {check for check, *_ in damage} - {"binary"}
    missed = [f"nothing proves the check {check}" for check in sorted(unproved)]
    for check, path, old, new in damage:
        with tempfile.TemporaryDirectory() as copy:
            for source in COPIED:
                to = Path(copy, source)
                to.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if Path(root, source).is_dir() else shutil.copy)(Path(root, source), to)
            text = Path(copy, path).read_text()
            if old not in text:
                missed.append(f"{check}: {path} has no “{old}” to damage")
                continue
            Path(copy, path).write_text(text.replace(old, new))
            try:
                CHECKS[check](Repository(copy, tools, kubernetes))
                missed.append(f"{check}: did not find that {path} has “{new}” for “{old}”")
            except Failure as failure:
                line = " ".join(str(failure).split())
                print(f"found {check:14} {path.removeprefix(CHART + '/')}: {line[:150]}")
    return missed, len(damage)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prove", action="store_true")
    parser.add_argument("--tools", required=True)
    parser.add_argument("--kubernetes", nargs="+", required=True)
    given = parser.parse_args()
    tools = Path(given.tools)
    if given.prove:
        missed, total = prove(".", tools, given.kubernetes)
        for line in missed:
            print(f"MISSED {line}", file=sys.stderr)
        sys.exit("not all damage was found" if missed else print(f"all of {total} damages were found"))

    repository, failed = Repository(Path.cwd(), tools, given.kubernetes), False
    for name, check in CHECKS.items():
        try:
            found = check(repository)
            print(f"ok    {name:14} {found}" if found else f"skip  {name:14} HEADCOUNT_BIN names no headcount")
        except Failure as failure:
            failed = True
            print(f"FAIL  {name:14} {failure}", file=sys.stderr)
    sys.exit("the chart is not sound" if failed else print("the chart is sound"))


main()
