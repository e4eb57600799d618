"""Compares headcount with what one would take instead: how fast, how exact, how large, and how long an answer takes.

The peers are ClickHouse (as the library chdb), Apache DataSketches, Redis by itself, webdis, and nginx with Lua. All count the
same ids in the same thousand counters, each in its own natural way, which its file describes. `data.py` has the ids. In each
round all peers are measured in turn; a figure is the median of the rounds. Memory and error are measured once: they do not
depend on how busy the machine is.

- Speed: ids a second by the clock, and user and system time an id. The latter is that of the peer's processes and of its Redis;
  clients are not in it. A library runs in a process of its own, and only what adds the ids is measured. So its figure has no
  network and no protocol, which those of servers have.
- Memory and error: bytes of a counter of 10, 1 000 and 100 000 different ids, as the peer keeps it, and the
  root-mean-square error of its count.
- Questions: how many different ids each of 1 000 counters has in this minute, and how many come in 35 days together.

Each answer is checked: counts of the total and of all counters against the exact ones, within five standard errors. If one is
wrong, the program exits with 1 and without figures.
"""

import argparse
import json
import os
import pathlib
import signal
import sys

import data
import tables
from measuring import Wrong
from peer_clickhouse import ClickHouse
from peer_datasketches import DataSketches
from peer_headcount import Headcount
from peer_over_redis import Nginx, Webdis
from peer_redis import RawRedis

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")).resolve()
PEERS = {peer.key: peer for peer in (Headcount, RawRedis, Webdis, Nginx, ClickHouse, DataSketches)}


class Work:
    """What all peers get."""

    def __init__(self, args):
        self.place, self.headcount, self.seconds = TARGET / "peers" / "data", args.headcount.resolve(), args.seconds
        data.write(self.place)
        self.pairs = data.Pairs()


def main():
    # So that the servers are stopped then, too.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, lambda *_: sys.exit(1))
    args = arguments()
    peers = [PEERS[key]() for key in PEERS if not args.only or key in args.only]
    left_out = {peer.key: why for peer in peers if (why := peer.left_out())}
    peers = [peer for peer in peers if peer.key not in left_out]
    result = tables.Result()
    try:
        measure(peers, args, result)
    except Wrong as wrong:
        print(f"no figures: {wrong}", file=sys.stderr)
        return 1
    tables.show(result, left_out, args.rounds)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"rounds": args.rounds, "left_out": left_out, **result.as_json()}, indent=1))
    print(f"\nAll figures are in {args.json}")
    return 0


def measure(peers, args, result):
    work = Work(args)
    for peer in peers:
        say(f"{peer.key}: prepare")
        peer.prepare(work)
    for number in range(args.rounds):
        for peer in peers:
            say(f"{peer.key}: round {number + 1}")
            peer.measure(result)
    for peer in peers:
        say(f"{peer.key}: memory and error")
        peer.sizes(result)


def say(text):
    """To standard error, so that standard output has only tables."""
    print(f"== {text}", file=sys.stderr, flush=True)


def arguments():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__, formatter_class=form)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of a measurement with an id a request")
    parser.add_argument("--only", action="append", choices=PEERS, help="may be repeated")
    parser.add_argument("--json", type=pathlib.Path, default=TARGET / "peers.json")
    parser.add_argument("--headcount", type=pathlib.Path, default=TARGET / "release" / "headcount", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1 or args.seconds < 1:
        parser.error("a round and a second are the least")
    return args


if __name__ == "__main__":
    sys.exit(main())
