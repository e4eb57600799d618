"""Sends ids to the load balancer and counts the answers.

    load.py URL FIRST RATE [SECONDS]

Each id is sent once, from FIRST on, RATE a second, over 8 kept connections. It ends after SECONDS or with SIGTERM, and
prints how many answers there were of each kind, as JSON: {"ok": 500, "502": 1}.
"""

import collections
import http.client
import itertools
import json
import signal
import sys
import threading
import time
import urllib.parse

CONNECTIONS = 8


def main():
    url, first, rate = urllib.parse.urlsplit(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    answers = [collections.Counter() for _ in range(CONNECTIONS)]
    threads = [
        threading.Thread(target=send, args=(url, first + number, rate / CONNECTIONS, stop, answers[number]))
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    stop.wait(float(sys.argv[4]) if len(sys.argv) > 4 else 600)
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(sum(answers, collections.Counter())))


def send(url, first, rate, stop, answers):
    connection = None
    start = time.monotonic()
    for number in itertools.count():
        if stop.wait(max(0, start + number / rate - time.monotonic())):
            return
        try:
            connection = connection or http.client.HTTPConnection(url.hostname, url.port, timeout=30)
            connection.request("GET", f"/api/verve/accept?id={first + number * CONNECTIONS}")
            answer = connection.getresponse()
            body = answer.read()
            answers["ok" if (answer.status, body) == (200, b"ok") else str(answer.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            answers[type(error).__name__] += 1
            connection = None


main()
