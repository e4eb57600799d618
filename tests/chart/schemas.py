"""Extracts schemas for kubeconform.

schemas.py kubernetes WHEEL TO VERSION...   those of these versions of Kubernetes
schemas.py operator JSON SUM TO             those of Prometheus Operator; JSON is what `go mod download -json` says
"""

import json
import sys
import zipfile
from pathlib import Path


def of_kubernetes(wheel, to, *versions):
    """The wheel has one directory a version. Its schemas say that they are on a server, and refer to each other there."""
    wheel = zipfile.ZipFile(wheel)
    for version in versions:
        before = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/"
        names = [name for name in wheel.namelist() if name.startswith(before) and name.endswith(".json")]
        assert names, f"no schemas of Kubernetes {version}"
        directory = Path(to, f"v{version}-strict")
        directory.mkdir(parents=True)
        for name in names:
            schema = json.loads(wheel.read(name).decode().replace('"/api/_definitions.json', '"_definitions.json'))
            schema.pop("$id", None)
            (directory / name.removeprefix(before)).write_text(json.dumps(schema))


def strict(schema):
    """An object may have no other fields than those that are listed: kubeconform's -strict does not do that by itself."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not is_open:
        schema["additionalProperties"] = False
    return schema


def of_operator(answer, expected, to):
    import yaml

    answer = json.loads(Path(answer).read_text())
    assert answer["Sum"] == expected, f"the sum of Prometheus Operator is {answer['Sum']}"
    directory = Path(to, "operator")
    directory.mkdir(parents=True)
    for plural, kind in [("servicemonitors", "servicemonitor"), ("prometheusrules", "prometheusrule")]:
        path = Path(answer["Dir"], "example/prometheus-operator-crd", f"monitoring.coreos.com_{plural}.yaml")
        [version] = yaml.safe_load(path.read_text())["spec"]["versions"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        # What every object has is not listed.
        schema["properties"]["metadata"] = {"type": "object"}
        (directory / f"{kind}-monitoring-v1.json").write_text(json.dumps(schema))


{"kubernetes": of_kubernetes, "operator": of_operator}[sys.argv[1]](*sys.argv[2:])
