"""Servers on free loopback ports, and clients for them.

The clients are small, because they share the cores with the servers: what they cost is part of the wall time.
"""

import contextlib
import io
import pathlib
import re
import socket
import subprocess
import tempfile
import time

from data import command
from measuring import check, cpu_of


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Servers(contextlib.ExitStack):
    """Servers that work together, in a temporary directory. All are stopped at the end."""

    def __init__(self):
        super().__init__()
        self.place = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        self.processes = []

    def start(self, port, *words):
        log = self.enter_context(open(self.place / f"{port}.log", "w+"))
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen([str(word) for word in words], cwd=self.place, **streams)
        self.callback(stop, process)
        self.processes.append(process)
        end = time.monotonic() + 20
        while not listens(port):
            log.seek(0)
            check(process.poll() is None and time.monotonic() < end, f"{words[0]} does not start: {log.read().strip()}")
            time.sleep(0.02)
        return port

    def redis(self):
        """A Redis that writes nothing to disk."""
        port = free_port()
        return self.start(port, "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")

    def cpu(self):
        """User and system time of all of them so far, in seconds."""
        return sum(cpu_of(process.pid) for process in self.processes)


def stop(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.socket.makefile("rb", 1 << 16)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answers.close()
        self.socket.close()

    def exchange(self, requests, is_whole):
        """Sends requests, and takes what comes until it is whole. To read answers one by one may take longer than the server."""
        self.socket.sendall(requests)
        answers = bytearray()
        while not is_whole(answers):
            some = self.socket.recv(1 << 20)
            check(some, f"the connection ended after {bytes(answers[-200:])!r}")
            answers += some
        return io.BytesIO(answers)


class Http(Connection):
    def ask(self, request):
        """Sends the request as it is. The body of the answer, if its status is 200."""
        self.socket.sendall(request)
        return self.read()

    def get(self, path):
        return self.ask(get(path))

    def pipeline(self, paths):
        """The answers to requests that are sent at once. `bodies` reads them."""
        def is_whole(answers):
            begin, end = answers.rfind(b"HTTP/1.1 "), answers.rfind(b"\r\n\r\n")
            if end < begin or answers.count(b"HTTP/1.1 ") < len(paths):
                return False
            length = int(re.findall(rb"(?i)content-length: *(\d+)", answers[begin:])[0])
            return len(answers) == end + 4 + length

        return self.exchange(b"".join(map(get, paths)), is_whole)

    def bodies(self, answers, number):
        self.answers = answers
        return [self.read() for _ in range(number)]

    def read(self):
        status, length, self.length_of_head = self.answers.readline(), None, 0
        head = [status]
        while head[-1] not in (b"\r\n", b""):
            head.append(self.answers.readline())
            field, _, value = head[-1].partition(b":")
            length = int(value) if field.lower() == b"content-length" else length
        self.length_of_head = sum(map(len, head))
        check(status.startswith(b"HTTP/1.1 200 ") and length is not None, f"an answer is {b''.join(head)!r}")
        return self.answers.read(length)


def get(path):
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


class Redis(Connection):
    def ask(self, *words):
        return self.send(command(*words).encode(), 1)[0]

    def send(self, commands, number):
        """Sends so many commands before it reads the answers."""
        self.socket.sendall(commands)
        return [self.read() for _ in range(number)]

    def numbers(self, commands, number):
        """The answers to commands that are sent at once and have numbers for answers, one a line."""
        answers = self.exchange(commands, lambda answers: answers.count(b"\r\n") == number).read().split()
        check(all(answer.startswith(b":") for answer in answers), f"Redis answers {answers[:3]}")
        return answers

    def read(self):
        line = self.answers.readline()
        kind, rest = line[:1], line[1:-2]
        check(kind in (b"+", b":", b"$", b"*"), f"Redis answers {line!r}")
        if kind == b"+":
            return rest
        number = int(rest)
        if kind == b"$":
            return self.answers.read(number + 2)[:-2]
        return [self.read() for _ in range(number)] if kind == b"*" else number

    def memory(self, beginning=b""):
        """Bytes of all keys with this beginning: their names, values and entries."""
        keys = [key.decode() for key in self.ask("KEYS", "*") if key.startswith(beginning)]
        check(keys, f"no key begins with {beginning}")
        asks = "".join(command("MEMORY", "USAGE", key, "SAMPLES", "0") for key in keys)
        return sum(self.send(asks.encode(), len(keys)))
