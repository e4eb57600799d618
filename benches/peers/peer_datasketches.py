"""Apache DataSketches: `hll_sketch` and `cpc_sketch`, in the memory of one process, in one thread.

The natural way in Python: a dictionary of sketches by the name of the counter, and `update` for each id. This version has no
`update` for many ids, so each id costs a call from Python. The library in C++ or Java has less to do for an id.

- `hll_sketch` of type HLL_4 with lgk 14 has as many registers as Redis: 2^14. Its unions have the error of Redis, 0.81 %. A
  sketch that was not merged has 0.65 %, because it also estimates while it counts (HIP). With lgk 12 they are 1.6 and 1.3 %.
- `cpc_sketch` with lgk 13 has the nearest errors: 0.77 %, and 0.65 % before a union.

Bytes are those of the sketch as it is stored: `serialize_compact`, and `serialize`. In memory it takes more.

Called as a program it does one of these in a process of its own, so that the CPU is that of the sketches: see `STEPS`.
"""

import collections
import importlib.util
import json
import sys

import data
from measuring import Stopwatch, all_near, ask, in_child, near, rms

HLL_LGK, CPC_LGK = 14, 13
ROWS = {"hll": f"DataSketches, HLL_4, lgk {HLL_LGK}", "cpc": f"DataSketches, CPC, lgk {CPC_LGK}"}
# Of a union, which is the larger error.
ERRORS = {"hll": 1.04 / 2 ** (HLL_LGK / 2), "cpc": 0.693 / 2 ** (CPC_LGK / 2)}


class DataSketches:
    key = "datasketches"

    def left_out(self):
        return None if importlib.util.find_spec("datasketches") else "datasketches is not installed"

    def prepare(self, work):
        self.pairs = work.pairs

    def measure(self, result):
        for kind, row in ROWS.items():
            done = in_child("peer_datasketches.py", "load", kind)
            near(done["total"], self.pairs.total, ERRORS[kind], row)
            all_near(done["counts"], self.pairs.exact, ERRORS[kind], row)
            near(done["days_total"], data.DAYS * data.IDS_A_DAY, ERRORS[kind], f"{row}, 35 days")
            result.speed(row, done["speed"])
            result.questions(row, done["counters"], done["days"])

    def sizes(self, result):
        for kind, row in ROWS.items():
            for size, done in in_child("peer_datasketches.py", "sizes", kind).items():
                for count in done["counts"]:
                    near(count, int(size), ERRORS[kind], f"{row}, {size} ids")
                result.size(f"{row}, serialized", int(size), done["bytes"], rms(done["counts"], int(size)))


class Kind:
    def __init__(self, kind):
        import datasketches as library

        self.library, self.is_hll = library, kind == "hll"

    def sketch(self):
        return self.library.hll_sketch(HLL_LGK, self.library.HLL_4) if self.is_hll else self.library.cpc_sketch(CPC_LGK)

    def bytes(self, sketch):
        return len(sketch.serialize_compact() if self.is_hll else sketch.serialize())

    def union(self, sketches):
        union = self.library.hll_union(HLL_LGK) if self.is_hll else self.library.cpc_union(CPC_LGK)
        for sketch in sketches:
            union.update(sketch)
        return union.get_estimate() if self.is_hll else union.get_result().get_estimate()

    def of(self, ids):
        sketch = self.sketch()
        for id in ids.tolist():
            sketch.update(id)
        return sketch


def load(kind):
    kind, pairs = Kind(kind), data.Pairs()
    names, ids = pairs.names(), pairs.ids.tolist()
    sketches = collections.defaultdict(kind.sketch)
    with Stopwatch() as watch:
        for name, id in zip(names, ids):
            sketches[name].update(id)
    counters, counts = ask(lambda: {name: sketch.get_estimate() for name, sketch in sketches.items()})
    of_days = [kind.of(ids) for ids in data.days()]
    days, days_total = ask(lambda: kind.union(of_days))
    return {"speed": watch.speed(data.PAIRS), "counts": counts, "total": kind.union(sketches.values()), "counters": counters,
            "days": days, "days_total": days_total}


def sizes(kind):
    kind, done = Kind(kind), {}
    for size, number in data.SIZES.items():
        sketches = [kind.of(ids) for ids in data.sized(size)]
        done[size] = {"bytes": sum(map(kind.bytes, sketches)) / number, "counts": [sketch.get_estimate() for sketch in sketches]}
    return done


STEPS = {"load": load, "sizes": sizes}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
