"""The load of scripts/chart-test: ids through the Service, and what came of each.

Each id is sent three times, by different connections, so that most ids reach several instances. kube-proxy chooses the
instance by connection. So three workers take a new connection after 25 requests. Three keep theirs until the server ends it.

What a request may do, as HTTP clients do:

- A connection that the server has closed before the request is sent is replaced. Nothing was sent, so nothing is repeated.
  Such connections are counted in `replaced`.
- If a connection had an answer before, and it breaks before the first byte of the next answer, the request is repeated,
  once, on a new connection (RFC 9110, 9.2.2). Such requests are counted in `repeated`.
- Everything else is a failure: no connection, an answer that breaks off or does not come, and each that is not 200 `ok`.
"""

import select
import socket
import threading
import time
from collections import defaultdict

REQUESTS = (25, 25, 25, None, None, None)  # Of each connection, by worker.
WORKERS = len(REQUESTS)
RATE = 20  # Requests a second of each worker.
COPIES = 3  # Of each id.
TIMEOUT = 10


class Broken(Exception):
    """The connection broke: `early` if it was not new, and nothing of an answer had come."""

    def __init__(self, why, early=False):
        super().__init__(why)
        self.early = early


class Connection:
    def __init__(self, address, requests):
        self.answers, self.requests = 0, requests
        try:
            self.socket = socket.create_connection(address, timeout=TIMEOUT)
        except OSError as error:
            raise Broken(f"no connection: {error}") from error

    def is_closed(self):
        """The server has closed it. Between requests there is nothing else to read."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def get(self, target):
        """The status and the body of the answer."""
        received = b""
        try:
            self.socket.sendall(f"GET {target} HTTP/1.1\r\nhost: headcount\r\n\r\n".encode())
            while (end := received.find(b"\r\n\r\n")) < 0:
                received += self.more(received)
            head, body = received[:end].decode("latin-1").lower(), received[end + 4:]
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
            while len(body) < int(fields["content-length"]):
                body += self.more(received)
        except OSError as error:
            early = self.answers > 0 and not received and not isinstance(error, TimeoutError)
            raise Broken(f"broken: {error or type(error).__name__}", early) from error
        self.answers += 1
        self.last = self.answers == self.requests or fields.get("connection") == "close"
        return int(head.split(" ")[1]), body

    def more(self, received):
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("closed without an answer" if not received else "closed within an answer")
        return data

    def close(self):
        self.socket.close()


class Load:
    def __init__(self, address, window):
        self.address, self.window = address, window
        self.lock = threading.Lock()
        self.sent, self.ok, self.repeated, self.replaced, self.connections = 0, 0, 0, 0, 0
        self.failures = []  # The time and the reason of each.
        # By the start of a window: ids that count in it, and ids that may.
        self.surely, self.perhaps = defaultdict(set), defaultdict(set)
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(number,), daemon=True) for number in range(WORKERS)]

    def start(self):
        self.began = time.time()
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(3 * TIMEOUT)
        if any(thread.is_alive() for thread in self.threads):
            self.failures.append((time.time(), "a worker of the load hangs"))
        self.ended = time.time()

    def work(self, number):
        connection, due = None, time.monotonic() + number / WORKERS / RATE
        while not self.stopping.wait(max(0, due - time.monotonic())):
            # After a stall it does not catch up.
            due = max(due + 1 / RATE, time.monotonic())
            with self.lock:
                identifier = self.sent // COPIES
                self.sent += 1
            connection = self.send(connection, identifier, REQUESTS[number])
        if connection:
            connection.close()

    def send(self, connection, identifier, requests):
        """Sends an id. Returns the connection if it can take the next request."""
        began, why = time.time(), None
        if connection and connection.is_closed():
            connection.close()
            connection = None
            with self.lock:
                self.replaced += 1
        try:
            try:
                connection = connection or self.connect(requests)
                answer = connection.get(f"/api/verve/accept?id={identifier}")
            except Broken as broken:
                if not broken.early:
                    raise
                connection.close()
                with self.lock:
                    self.repeated += 1
                connection = self.connect(requests)
                answer = connection.get(f"/api/verve/accept?id={identifier}")
            if answer != (200, b"ok"):
                why = f"answer: {answer[0]} {answer[1][:80]!r}"
        except Broken as broken:
            why = str(broken)
        except Exception as error:  # An answer that is not HTTP.
            why = f"answer: {error!r}"
        self.note(identifier, began, time.time(), why)
        if connection and (why or connection.last):
            connection.close()
            return None
        return connection

    def connect(self, requests):
        with self.lock:
            self.connections += 1
        return Connection(self.address, requests)

    def note(self, identifier, began, ended, why):
        first, last = (int(at // self.window) * self.window for at in (began, ended))
        with self.lock:
            if why:
                self.failures.append((ended, why))
            else:
                self.ok += 1
            if not why and first == last:
                self.surely[first].add(identifier)
            else:
                # The clock of the instance said which window, or the request never reached one.
                for start in range(first, last + 1, self.window):
                    self.perhaps[start].add(identifier)

    def bounds(self, start):
        """How many different ids the window has at least, and at most."""
        with self.lock:
            return len(self.surely[start]), len(self.surely[start] | self.perhaps[start])

    def totals(self):
        with self.lock:
            return {"sent": self.sent, "ok": self.ok, "failures": len(self.failures), "repeated": self.repeated,
                    "replaced": self.replaced, "connections": self.connections}
