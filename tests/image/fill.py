"""Fills everything of a service that has a limit, all at once: counters, connections, bulk bodies.

    fill.py HOST PORT CONNECTIONS BODY-LIMIT BODIES

It prints what was reached, as JSON. Counters come until their memory is full, which the metric says that counts ids
beyond it. Then come the connections, and more large bodies than the service takes, each without its last bytes. When
all are in flight, the last bytes follow.
"""

import json
import resource
import socket
import sys
import time
import urllib.request

HOST, PORT, CONNECTIONS, BODY_LIMIT, BODIES = sys.argv[1], *map(int, sys.argv[2:])
LAST = 20


def main():
    limit = CONNECTIONS + 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    fill_counters()
    # Some of the connections are for the bodies, and one is for the metrics.
    connections = [idle() for _ in range(CONNECTIONS - BODIES - 1)]
    ids = "".join(f"{10**17 + number}\n" for number in range(BODY_LIMIT // 19)).encode()
    bodies = [begin_body(ids) for _ in range(BODIES)]
    open_now = metric("headcount_connections")
    # All at once: a body and the list of its ids take memory at the same time.
    for connection in bodies:
        finish(connection, ids)
    taken = sum(is_taken(connection) for connection in bodies)
    print(json.dumps({
        "counter_bytes": int(metric("headcount_counter_memory_bytes")),
        "connections": int(open_now),
        "bodies": taken,
        "bodies_refused": len(bodies) - taken,
    }))
    del connections


def metric(name):
    text = urllib.request.urlopen(f"http://{HOST}:{PORT}/metrics", timeout=60).read().decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.split(" ")[0].split("{")[0] == name))


def fill_counters():
    connection = socket.create_connection((HOST, PORT), timeout=60)
    deadline = time.monotonic() + 240
    for first in range(0, 1 << 40, 10_000):
        names = [f"{number:0>100}" for number in range(first, first + 10_000)]
        lines = [
            json.dumps({"id": 7, "counters": names[at:at + 8]}) + "\n" for at in range(0, len(names), 8)
        ]
        body = "".join(lines).encode()
        connection.sendall(head(len(body), "application/x-ndjson") + body)
        status = answer_of(connection)
        assert status == 200, status
        if metric("headcount_counter_overflow_ids_total") > 0:
            return
        assert time.monotonic() < deadline, "counters did not fill up in four minutes"


def head(length, kind):
    return f"POST /api/verve/accept HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


def answer_of(connection):
    """The status of an answer, which is read to its end."""
    answer = connection.makefile("rb")
    status = int(answer.readline().split()[1])
    length = 0
    while (line := answer.readline().strip()):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    answer.read(length)
    return status


def idle():
    connection = socket.create_connection((HOST, PORT), timeout=60)
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer_of(connection) == 200
    return connection


def begin_body(ids):
    """Sends all of a body but its last bytes."""
    connection = socket.create_connection((HOST, PORT), timeout=60)
    try:
        connection.sendall(head(len(ids), "text/plain") + ids[:-LAST])
    except OSError:
        # It was refused while it was sent.
        pass
    return connection


def finish(connection, ids):
    try:
        connection.sendall(ids[-LAST:])
    except OSError:
        # It was refused.
        pass


def is_taken(connection):
    try:
        return answer_of(connection) == 200
    except (OSError, IndexError):
        return False


main()
