"""The usage of CPU that the HorizontalPodAutoscaler sees, in place of the Metrics Server. The test says what all pods use
together, and each has the same part of it.

The API server passes requests for /apis/metrics.k8s.io on to a Service. This one leads to a server in this process.
"""

import json
import ssl
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GROUP = "metrics.k8s.io"
VERSION = f"{GROUP}/v1beta1"
PORT = 4443


def objects(address):
    """What makes the API server ask this server."""
    meta = {"name": "metrics", "namespace": "kube-system"}
    endpoints = {"addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"port": PORT, "protocol": "TCP"}]}
    group = {"group": GROUP, "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100}
    api = {"metadata": {"name": f"v1beta1.{GROUP}"}, "spec": group | {"insecureSkipTLSVerify": True, "service": meta}}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 443, "targetPort": PORT}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", **endpoints,
         "metadata": meta | {"labels": {"kubernetes.io/service-name": "metrics"}}},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", **api},
    ]


class Metrics:
    def __init__(self, address, certificate, pods):
        """`pods` says which pods there are."""
        self.millicores, self.pods = 0, pods  # Of all pods together.
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer = json.dumps(metrics.usage() if "/pods" in self.path else RESOURCES).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer((address, PORT), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def usage(self):
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        pods, items = [pod for pod in self.pods() if "deletionTimestamp" not in pod["metadata"]], []
        for pod in pods:
            container = {"name": "headcount", "usage": {"cpu": f"{self.millicores // len(pods)}m", "memory": "20Mi"}}
            meta = {key: pod["metadata"].get(key) for key in ("name", "namespace", "labels")}
            items.append({"metadata": meta, "timestamp": now, "window": "10s", "containers": [container]})
        return {"kind": "PodMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items}


RESOURCES = {
    "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
    "resources": [{"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}],
}
