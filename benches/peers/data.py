"""The ids and counters that all peers get, and the exact counts.

- `Pairs`: two million pairs of a counter and an id, for the speed. There are a thousand counters, and their shares follow
  Zipf's law. The ids are uniform below a million.
- `sized`: counters of 10, 1 000 and 100 000 different ids, for memory and error. No two counters share an id.
- `days`: 35 sets of 50 000 ids, enough to fill every sketch, for the count of 35 days.

All are drawn by numpy with a fixed seed, so they are the same in every process. `write` writes the pairs once, in the forms
that the peers take.
"""

import hashlib
import pathlib

import numpy

SEED = 20_261_130
PAIRS = 2_000_000
COUNTERS = 1_000
IDS = 1_000_000
# How many counters of each size.
SIZES = {10: 200, 1_000: 200, 100_000: 100}
DAYS, IDS_A_DAY = 35, 50_000
# An id of a peer that has 64 bits for it. headcount takes them as signed ones.
HIGHEST = 2**62


def name(number):
    return f"campaign-{number}"


class Pairs:
    """The pairs: `counters` are the numbers of their counters, from 1."""

    def __init__(self):
        generator = numpy.random.default_rng(SEED)
        shares = numpy.cumsum(1 / numpy.arange(1, COUNTERS + 1))
        self.counters = 1 + numpy.searchsorted(shares, generator.random(PAIRS) * shares[-1], side="right").astype(numpy.uint32)
        self.ids = generator.integers(0, IDS, PAIRS, dtype=numpy.uint64)
        self.total, self.exact = distinct(self.counters, self.ids)

    def names(self):
        return [name(number) for number in self.counters.tolist()]


def distinct(counters, ids):
    """How many different ids all pairs have, and those of each counter by its name."""
    keys = numpy.unique(counters.astype(numpy.uint64) * IDS + ids)
    counts = numpy.bincount((keys // IDS).astype(numpy.int64), minlength=COUNTERS + 1)
    return len(numpy.unique(ids)), {name(number): int(counts[number]) for number in range(1, COUNTERS + 1) if counts[number]}


def sized(size):
    """The ids of the counters of a size, a row for each."""
    return different(SIZES[size], size, SEED + size)


def days():
    return different(DAYS, IDS_A_DAY, SEED + 1)


def different(rows, columns, seed):
    ids = numpy.random.default_rng(seed).integers(0, HIGHEST, (rows, columns), dtype=numpy.uint64)
    # Two equal ones among so many are unlikely. If this fails, take another seed.
    assert len(numpy.unique(ids)) == ids.size
    return ids


def write(place):
    """Writes the pairs, unless this version of them is there."""
    version, stamp = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest(), place / "version"
    if stamp.exists() and stamp.read_text() == version:
        return
    place.mkdir(parents=True, exist_ok=True)
    pairs = Pairs()
    rows = list(zip(pairs.names(), pairs.ids.tolist()))
    # For headcount.
    (place / "pairs.ndjson").write_text("".join(f'{{"id":{id},"counters":["{counter}"]}}\n' for counter, id in rows))
    # For redis-cli --pipe.
    (place / "pairs.resp").write_text("".join(command("PFADD", counter, str(id)) for counter, id in rows), newline="")
    # For wrk, and for ClickHouse, which turns it into its own forms.
    binary(place / "pairs.bin", pairs.counters, pairs.ids)
    for size in SIZES:
        binary_rows(place / f"sized-{size}.bin", sized(size))
    binary_rows(place / "days.bin", days())
    stamp.write_text(version)


def command(*words):
    """A command in the protocol of Redis."""
    return f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)


def binary_rows(file, ids):
    binary(file, numpy.repeat(numpy.arange(len(ids), dtype=numpy.uint32), ids.shape[1]), ids.ravel())


def binary(file, groups, ids):
    """ClickHouse's RowBinary: a number of 32 bits and one of 64 bits, again and again."""
    rows = numpy.empty(len(ids), dtype=[("group", "<u4"), ("id", "<u8")])
    rows["group"], rows["id"] = groups, ids
    rows.tofile(file)
