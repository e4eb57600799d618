"""headcount: in memory and through Redis, in bulk and an id a request.

It counts each id in the total, too, which is one more sketch than the other peers have. They count the total as the union of
all counters.

- Bulk: NDJSON bodies of a thousand objects, over eight connections. A window of 30 s takes all of them, so that the whole
  load is one window. It is loaded from the window's start, and the list of counters is asked for when it is closed.
- `/api/verve/counters` lists the closed window, whose counts were made at its close. So the counters of the running window
  are asked for, too, each by a request of its own, all of them sent at once over one connection.
- 35 days: benches/load measures that (`ranges`), with sketches of 50 000 ids as for the others, over HTTP from Redis. Its
  figure in memory is that of the store, without HTTP.
- Bytes: `headcount_counter_memory_bytes` of the instance, and `MEMORY USAGE` of the counters' keys in Redis.

CPU is that of the instance and of Redis.
"""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import time

import data
from measuring import Stopwatch, Wrong, all_near, ask, check, near, rms
from one_a_request import Load
from servers import Http, Redis, Servers, free_port

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# 1.04 / √2^14.
ERROR = 0.0081
WINDOW = 30
BULK, CONNECTIONS = 1_000, 8
# How benches/load calls its figure of 35 days.
STORES = {"memory": "in memory: 35 days", "Redis": "35 days"}


class Instance:
    """A service, and its Redis if it has one."""

    def __init__(self, servers, binary, store, window):
        self.redis = servers.redis() if store == "Redis" else None
        url = ["--redis-url", f"redis://127.0.0.1:{self.redis}"] if self.redis else []
        self.port = free_port()
        servers.start(self.port, binary, "--listen", f"127.0.0.1:{self.port}", "--window", window, "--log-level", "warn", *url)
        self.wait("ready", self.is_ready)

    def is_ready(self):
        # 503 while it starts.
        with contextlib.suppress(Wrong):
            return self.get("/readyz", str) == "ready"

    def get(self, path, read=json.loads):
        with Http(self.port) as http:
            return read(http.get(path).decode().strip())

    def wait(self, what, is_so):
        end = time.monotonic() + WINDOW + 30
        while not is_so():
            check(time.monotonic() < end, f"headcount: not {what} in time")
            time.sleep(0.05)

    def metric(self, name):
        lines = self.get("/metrics", str.splitlines)
        return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))

    def running(self, names=None):
        """How long the answers take for the total of the running window, or for its counters, and these counts."""
        paths = [f"/api/verve/unique?counter={name}" for name in names] if names else ["/api/verve/unique"]
        with Http(self.port) as http:
            took, bodies = ask(lambda: http.pipeline(paths), lambda answers: http.bodies(answers, len(paths)))
        return took, [json.loads(body)["current"]["unique_request_count"] for body in bodies]


class Headcount:
    key = "headcount"

    def left_out(self):
        return None

    def prepare(self, work):
        self.work = work
        with open(work.place / "pairs.ndjson", "rb") as lines:
            bodies = [b"".join(itertools.islice(lines, BULK)) for _ in range(0, data.PAIRS, BULK)]
        self.bodies = [post("", "application/x-ndjson", body) for body in bodies]
        figures = work.place / "ranges.json"
        command = ["cargo", "bench", "--quiet", "--bench", "load", "--", "ranges", "--rounds", "1", "--json", str(figures)]
        # cargo starts other programs: if this one ends, they do.
        with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
            try:
                _, said = running.communicate()
            except BaseException:
                os.killpg(running.pid, signal.SIGTERM)
                raise
        check(running.returncode == 0, f"benches/load ranges: {said.strip()}")
        self.ranges = json.loads(figures.read_text())["ranges"]

    def measure(self, result):
        for store in STORES:
            self.measure_bulk(store, result)
            with Servers() as servers:
                instance = Instance(servers, self.work.headcount, store, "24h")
                load = Load(servers, instance.port, "/api/verve/accept?id=ID&counter=COUNTER", b"ok")
                speed = load.send(self.work)
                names = list(self.work.pairs.exact)
                (_, [total]), (_, counts) = instance.running(), instance.running(names)
                load.check_counts(total, dict(zip(names, counts)), ERROR, f"headcount, {store}")
                result.speed(f"headcount, {store}, an id a request", speed)

    def measure_bulk(self, store, result):
        row, pairs = f"headcount, {store}", self.work.pairs
        names = list(pairs.exact)
        with Servers() as servers:
            instance = Instance(servers, self.work.headcount, store, f"{WINDOW}s")
            # Until the next window begins.
            begin = (time.time() // WINDOW + 1) * WINDOW
            time.sleep(begin - time.time() + 0.1)
            with Stopwatch(servers.cpu) as watch:
                send(instance.port, self.bodies)
            (_, [total]), (running, counts) = instance.running(), instance.running(names)
            check(time.time() < begin + WINDOW, f"{row}: it took longer than a window")
            near(total, pairs.total, ERROR, row)
            all_near(dict(zip(names, counts)), pairs.exact, ERROR, row)
            closed_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin))
            instance.wait("closed", lambda: instance.get("/api/verve/counters?limit=1")["timestamp"] == closed_at)
            last = instance.get("/api/verve/unique")["last"]
            check(last["timestamp"] == closed_at and last["complete"] and last["accepted_ids"] == data.PAIRS, f"{row}: {last}")
            near(last["unique_request_count"], pairs.total, ERROR, row)
            with Http(instance.port) as http:
                closed, body = ask(lambda: http.get("/api/verve/counters?limit=1000"))
            answer = json.loads(body)
            is_right = answer["timestamp"] == closed_at and answer["complete"] and answer["total_counters"] == len(names)
            check(is_right, f"{row}: {body[:200]}")
            counts = {one["counter"]: one["unique_request_count"] for one in answer["counters"]}
            all_near(counts, pairs.exact, ERROR, f"{row}, closed")
        result.speed(f"{row}, bulk", watch.speed(data.PAIRS))
        result.questions(f"{row}, the closed window", closed, {"again_ms": self.ranges[STORES[store]]["median_ms"]})
        result.questions(f"{row}, the running window", running, {})

    def sizes(self, result):
        for store, size in itertools.product(STORES, data.SIZES):
            names = [data.name(row) for row in range(data.SIZES[size])]
            with Servers() as servers:
                instance = Instance(servers, self.work.headcount, store, "24h")
                send(instance.port, [post(f"?counter={name}", "text/plain", "\n".join(map(str, ids.tolist())).encode())
                                     for name, ids in zip(names, data.sized(size))])
                _, counts = instance.running(names)
                for count in counts:
                    near(count, size, ERROR, f"headcount, {store}, {size} ids")
                own = instance.metric("headcount_counter_memory_bytes") / len(names)
                if store == "Redis":
                    with Redis(instance.redis) as redis:
                        of_counters = redis.memory(b"{headcount:c")
                    result.size("headcount, in Redis", size, of_counters / len(names), rms(counts, size))
                    result.size("the same, in each instance", size, own)
                else:
                    result.size("headcount, in memory", size, own, rms(counts, size))


def post(query, kind, body):
    fields = ["host: localhost", f"content-type: {kind}", f"content-length: {len(body)}"]
    return "\r\n".join([f"POST /api/verve/accept{query} HTTP/1.1", *fields, "", ""]).encode() + body


def send(port, requests):
    """Sends the requests over several connections, and checks each answer."""
    def some(first):
        with Http(port) as http:
            for request in requests[first::CONNECTIONS]:
                body = http.ask(request)
                check(body.strip() == b"ok", f"headcount answers {body!r}")

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(some, range(CONNECTIONS)))
