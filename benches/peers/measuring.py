"""What all peers measure with: medians, the CPU of processes, and the checks of answers.

A wrong answer raises `Wrong`. Then the program ends without figures: the figures of a peer that counts wrong mean nothing.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

# How far a count may be off. Chance does that once in two million counts.
STANDARD_ERRORS = 5
# Ids beyond that. In a sketch of few ids two that share a register are one, which is more than its standard error says.
FEW = 3
# How often a question is asked again.
AGAIN = 10
TICKS = os.sysconf("SC_CLK_TCK")


class Wrong(Exception):
    """An answer is not what it must be."""


def check(is_right, what):
    if not is_right:
        raise Wrong(what)


def near(found, exact, error, what, most=None):
    """Checks a count of `exact` ids, or of up to `most`, by a sketch with this standard error."""
    least, most = exact * (1 - STANDARD_ERRORS * error) - FEW, (most or exact) * (1 + STANDARD_ERRORS * error) + FEW
    check(least <= found <= most, f"{what}: {found} different ids were counted, not {least:.0f} to {most:.0f}")


def all_near(found, exact, error, what):
    """Checks counts by name. Each name must be there, and no other."""
    check(set(found) == set(exact), f"{what}: {len(found)} counters were counted, not {len(exact)}")
    for name, count in exact.items():
        near(found[name], count, error, f"{what}, {name}")


def rms(counts, exact):
    """The root-mean-square error of the counts, relative to the exact count that all of them have."""
    return math.sqrt(sum((count / exact - 1) ** 2 for count in counts) / len(counts))


def median(values):
    values = sorted(values)
    return (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2


def cpu_of(pid):
    """User and system time of a process and its children so far, in seconds."""
    # The name may have spaces, so start after it. User and system time are fields twelve and thirteen from there.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(cpu_of(child) for child in children)


class Stopwatch:
    """Wall time, and CPU as `cpu` tells it, of what is done in a `with`."""

    def __init__(self, cpu=time.process_time):
        self.read_cpu = cpu

    def __enter__(self):
        self.cpu, self.wall = self.read_cpu(), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.wall = time.perf_counter() - self.wall
        self.cpu = self.read_cpu() - self.cpu

    def speed(self, ids):
        return {"ids_per_second": ids / self.wall, "cpu_micros": self.cpu / ids * 1e6}


def ask(question, read=lambda answer: answer):
    """How long the first answer takes, and the median of further ones, in ms; and what `read` makes of the first answer. That
    takes no part in the time. Further answers must be the same."""
    millis = []
    for number in range(1 + AGAIN):
        begin = time.perf_counter()
        answer = question()
        millis.append((time.perf_counter() - begin) * 1e3)
        answer = read(answer)
        first = answer if number == 0 else first
        check(answer == first, "the same question has two answers")
    return {"first_ms": millis[0], "again_ms": median(millis[1:])}, first


def in_child(file, *words):
    """What a program of this directory prints, as JSON. It does nothing else, so that its CPU is that of the peer."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name(file)), *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    check(done.returncode == 0, f"{file} {words[0]} failed: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])
