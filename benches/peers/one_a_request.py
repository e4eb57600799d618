"""An id a request: wrk sends the pairs to a server, and its answers and counts are checked.

wrk has 64 connections and two threads. It has to be fast, so it does not look at each body. Instead:

- the first answer is checked byte by byte, and wrk counts answers with other statuses than 200 to 399;
- all answers together must have as many bytes as that many first answers, and a refusal has another length;
- the counts must be those of the pairs that were sent. Up to a request of each connection may be under way at the end.
"""

import json
import pathlib
import subprocess

import data
from measuring import check, near
from servers import Http

CONNECTIONS, THREADS = 64, 2


class Load:
    def __init__(self, servers, port, form, answer):
        self.servers, self.port, self.form, self.answer = servers, port, form, answer

    def send(self, work):
        """Sends the pairs for some seconds. The speed."""
        length = self.first(work.pairs)
        cpu = self.servers.cpu()
        script = pathlib.Path(__file__).with_name("pairs.lua")
        words = ["wrk", "-t", THREADS, "-c", CONNECTIONS, "-d", f"{work.seconds}s", "--timeout", "10s", "-s", script,
                 f"http://127.0.0.1:{self.port}", "--", work.place / "pairs.bin", self.form]
        done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        cpu = self.servers.cpu() - cpu
        check(done.returncode == 0 and done.stdout.strip().endswith("}"), f"wrk says {done.stdout} {done.stderr}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        requests = said["requests"]
        refused, broken = said["refused"], said["broken"]
        check(refused + broken == 0, f"{refused} answers were refusals, {broken} connections broke")
        check(0 < requests * length <= said["bytes"] <= (requests + CONNECTIONS) * length,
              f"{requests} answers have {said['bytes']} bytes, not {length} each")
        self.bounds = [self.exact(work.pairs, said["sent"], under_way) for under_way in (CONNECTIONS, 0)]
        return {"ids_per_second": requests / said["micros"] * 1e6, "cpu_micros": cpu / requests * 1e6}

    def first(self, pairs):
        """Sends the first pair by hand. The length of the answer."""
        path = self.form.replace("COUNTER", data.name(pairs.counters[0])).replace("ID", str(pairs.ids[0]))
        with Http(self.port) as http:
            body = http.get(path)
            check(body.strip() == self.answer, f"{path} answers {body!r}")
            return http.length_of_head + len(body)

    def exact(self, pairs, sent, under_way):
        """The exact counts of what the threads sent, but for the requests that may not have been answered."""
        was_sent = data.numpy.zeros(data.PAIRS, dtype=bool)
        was_sent[0] = True
        for number, requests in enumerate(sent):
            was_sent[number::THREADS][:max(requests - under_way, 0)] = True
        return data.distinct(pairs.counters[was_sent], pairs.ids[was_sent])

    def check_counts(self, total, counts, error, what):
        """Checks the total, and counts by the names of their counters."""
        (least_total, least), (most_total, most) = self.bounds
        near(total, least_total, error, what, most_total)
        for name, count in counts.items():
            near(count, least.get(name, 0), error, f"{what}, {name}", most.get(name, 0))
