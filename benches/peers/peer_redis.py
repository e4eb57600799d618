"""Redis itself: a key for each counter, and `PFADD`, `PFCOUNT`.

- The pairs go through `redis-cli --pipe`, one `PFADD` each: the way that Redis recommends for many commands.
- `redis-benchmark -P 64` adds random ids to one key. So it tells how fast one sketch takes ids, without counters.

CPU is that of Redis, not that of these clients. Redis keeps the count of a key until an id changes the sketch. So the first
`PFCOUNT` after that tells what a count costs, and further ones only read it.
"""

import math
import re
import shutil
import subprocess

import data
from data import command
from measuring import Stopwatch, all_near, ask, check, near, rms
from servers import Redis, Servers

# 1.04 / √2^14.
ERROR = 0.0081
# Commands, answers and ids that go together.
TOGETHER = 1_000
# Of redis-benchmark; 50 clients are its default.
CLIENTS, PIPELINE = 50, 64


class RawRedis:
    key = "redis"

    def left_out(self):
        missing = [name for name in ("redis-server", "redis-cli", "redis-benchmark") if not shutil.which(name)]
        return f"{', '.join(missing)}: not installed" if missing else None

    def prepare(self, work):
        self.place, self.pairs = work.place, work.pairs
        self.days = [add(f"day-{day}", ids) for day, ids in enumerate(data.days())]

    def measure(self, result):
        with Servers() as servers:
            port = servers.redis()
            with open(self.place / "pairs.resp") as commands, Stopwatch(servers.cpu) as watch:
                done = subprocess.run(["redis-cli", "-p", str(port), "--pipe"], stdin=commands, capture_output=True, text=True)
            said = done.stdout + done.stderr
            check(done.returncode == 0 and f"errors: 0, replies: {data.PAIRS}" in said, f"redis-cli --pipe: {said}")
            result.speed("Redis, PFADD by redis-cli --pipe", watch.speed(data.PAIRS))
            with Redis(port) as redis:
                names = list(self.pairs.exact)
                counts = "".join(command("PFCOUNT", name) for name in names).encode()
                counters, answers = ask(lambda: redis.numbers(counts, len(names)))
                all_near({name: int(answer[1:]) for name, answer in zip(names, answers)}, self.pairs.exact, ERROR, "Redis")
                near(redis.ask("PFCOUNT", *names), self.pairs.total, ERROR, "Redis")
                for commands, number in self.days:
                    redis.send(commands, number)
                days, answer = ask(lambda: redis.ask("PFCOUNT", *(f"day-{day}" for day in range(data.DAYS))))
                near(answer, data.DAYS * data.IDS_A_DAY, ERROR, "Redis, 35 days")
            result.questions("Redis, PFCOUNT", counters, days)
        self.measure_one_key(result)

    def measure_one_key(self, result):
        with Servers() as servers:
            port = servers.redis()
            words = ["redis-benchmark", "-p", port, "-c", CLIENTS, "-P", PIPELINE, "-n", data.PAIRS, "-r", data.IDS, "-q",
                     "PFADD", "one", "__rand_int__"]
            with Stopwatch(servers.cpu) as watch:
                done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            said = done.stdout + done.stderr
            check(done.returncode == 0 and "rror" not in said, f"redis-benchmark: {said}")
            with Redis(port) as redis:
                # It ends with the pipelines that it has begun, so it sends somewhat more.
                said = redis.ask("INFO", "commandstats").decode()
                calls = int(re.search(r"cmdstat_pfadd:calls=(\d+),", said)[1])
                check(data.PAIRS <= calls <= data.PAIRS + CLIENTS * PIPELINE, f"redis-benchmark sent {calls} commands")
                near(redis.ask("PFCOUNT", "one"), data.IDS * -math.expm1(-calls / data.IDS), ERROR, "redis-benchmark")
            result.speed("Redis, one key, by redis-benchmark -P 64", watch.speed(calls))

    def sizes(self, result):
        for size, number in data.SIZES.items():
            with Servers() as servers, Redis(servers.redis()) as redis:
                names = [data.name(row) for row in range(number)]
                for name, ids in zip(names, data.sized(size)):
                    redis.send(*add(name, ids))
                counts = [redis.ask("PFCOUNT", name) for name in names]
                for count in counts:
                    near(count, size, ERROR, f"Redis, {size} ids")
                result.size("Redis, a key", size, redis.memory() / number, rms(counts, size))


def add(key, ids):
    """Commands that add the ids to the key, and how many they are."""
    ids = list(map(str, ids.tolist()))
    parts = [ids[first:first + TOGETHER] for first in range(0, len(ids), TOGETHER)]
    return "".join(command("PFADD", key, *part) for part in parts).encode(), len(parts)
