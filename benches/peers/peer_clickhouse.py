"""ClickHouse, as the library chdb: `uniqCombined64` and `uniq`, as states in an AggregatingMergeTree on disk.

The natural way for a stream of events: they go into a table without storage (`Null`), and a materialized view makes a state
for each minute and counter out of each block. The file is inserted as a whole, because ClickHouse is fastest with large
blocks, with all cores: once as its own form `Native`, once as JSON lines. At the end `OPTIMIZE FINAL` merges the parts. It
is part of the time, because a server would do it later.

Called as a program it does one of these in a process of its own, so that the CPU is that of ClickHouse: see `STEPS`.
"""

import importlib.util
import json
import pathlib
import sys
import tempfile

import data
from measuring import Stopwatch, all_near, ask, in_child, near, rms

# 2^17 registers, unless it is told another power: 1.04 / √2^17. With 2^14 it has the error of headcount. `uniq` keeps a sample
# of at least 2^15 ids: 1 / √2^15.
FUNCTIONS = {"uniqCombined64": 0.0029, "uniqCombined64(14)": 0.0081, "uniq": 0.0055}
FORMS = {"Native": "Native", "JSONEachRow": "JSON lines"}
MINUTE = "2026-01-01 00:00:00"
GROUPS = "'RowBinary', 'number UInt32, id UInt64'"


def combined(function):
    """The functions that make a state, and that merge states. Their names come before the parameters."""
    name, bracket, parameters = function.partition("(")
    return [name + combinator + bracket + parameters for combinator in ("State", "Merge")]


class ClickHouse:
    key = "clickhouse"

    def left_out(self):
        return None if importlib.util.find_spec("chdb") else "chdb is not installed"

    def prepare(self, work):
        self.place, self.pairs = work.place, work.pairs
        in_child("peer_clickhouse.py", "convert", self.place)

    def measure(self, result):
        for function, error in FUNCTIONS.items():
            row = f"ClickHouse, {function}"
            for form, words in FORMS.items():
                done = in_child("peer_clickhouse.py", "load", self.place, function, form)
                near(done["total"], self.pairs.total, error, row)
                all_near(done["counts"], self.pairs.exact, error, row)
                result.speed(f"{row}, {words}", done["speed"])
                near(done["days_total"], data.DAYS * data.IDS_A_DAY, error, f"{row}, 35 days")
            result.questions(row, done["counters"], done["days"])

    def sizes(self, result):
        for function, error in FUNCTIONS.items():
            for size, done in in_child("peer_clickhouse.py", "sizes", self.place, function).items():
                for count in done["counts"]:
                    near(count, int(size), error, f"ClickHouse, {function}, {size} ids")
                result.size(f"ClickHouse, {function}, on disk", int(size), done["bytes"], rms(done["counts"], int(size)))


class Database:
    def __init__(self):
        from chdb import session

        self.place = tempfile.TemporaryDirectory(prefix="peers-")
        self.session = session.Session(self.place.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()
        self.place.cleanup()

    def __call__(self, sql):
        return [line.split("\t") for line in str(self.session.query(sql, "TabSeparated")).splitlines()]

    def table(self, name, key, function, order):
        self(f"CREATE TABLE {name} ({key}, ids AggregateFunction({function}, UInt64)) "
             f"ENGINE = AggregatingMergeTree ORDER BY ({order})")


def convert(place):
    """Writes the pairs in the forms that are loaded."""
    with Database() as query:
        for form in FORMS:
            (pathlib.Path(place) / f"pairs.{form}").unlink(missing_ok=True)
            query(f"INSERT INTO FUNCTION file('{place}/pairs.{form}', '{form}', 'counter String, id UInt64') "
                  f"SELECT concat('campaign-', toString(number)), id FROM file('{place}/pairs.bin', {GROUPS})")
    return {}


def load(place, function, form):
    state, merge = combined(function)
    with Database() as query:
        query("CREATE DATABASE d")
        query("USE d")
        query(f"CREATE TABLE events (at DateTime DEFAULT '{MINUTE}', counter LowCardinality(String), id UInt64) ENGINE = Null")
        query.table("uniques", "minute DateTime, counter LowCardinality(String)", function, "minute, counter")
        query("CREATE MATERIALIZED VIEW fill TO uniques AS SELECT toStartOfMinute(at) AS minute, counter, "
              f"{state}(id) AS ids FROM events GROUP BY minute, counter")
        with Stopwatch() as watch:
            query(f"INSERT INTO events (counter, id) FROM INFILE '{place}/pairs.{form}' FORMAT {form}")
            query("OPTIMIZE TABLE uniques FINAL")
        counters, rows = ask(lambda: query(
            f"SELECT counter, {merge}(ids) FROM uniques WHERE minute = '{MINUTE}' GROUP BY counter"), sorted)
        [[total]] = query(f"SELECT {merge}(ids) FROM uniques WHERE minute = '{MINUTE}'")
        # A state for each day, as another view would make them.
        query.table("days", "day Date, counter LowCardinality(String)", function, "counter, day")
        query(f"INSERT INTO days SELECT toDate('2026-01-01') + number, 'campaign-1', {state}(id) "
              f"FROM file('{place}/days.bin', {GROUPS}) GROUP BY number")
        query("OPTIMIZE TABLE days FINAL")
        days, [[days_total]] = ask(lambda: query(
            f"SELECT {merge}(ids) FROM days "
            "WHERE counter = 'campaign-1' AND day >= '2026-01-01' AND day < '2026-02-05'"))
    counts = {counter: int(count) for counter, count in rows}
    return {"speed": watch.speed(data.PAIRS), "counts": counts, "total": int(total), "counters": counters,
            "days": days, "days_total": int(days_total)}


def sizes(place, function):
    done, [state, merge] = {}, combined(function)
    with Database() as query:
        query("CREATE DATABASE d")
        query("USE d")
        for size, number in data.SIZES.items():
            table = f"sized_{size}"
            query.table(table, "counter LowCardinality(String)", function, "counter")
            query(f"INSERT INTO {table} SELECT concat('campaign-', toString(number)), {state}(id) "
                  f"FROM file('{place}/sized-{size}.bin', {GROUPS}) GROUP BY number")
            query(f"OPTIMIZE TABLE {table} FINAL")
            [[size_on_disk]] = query(f"SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = '{table}'")
            rows = query(f"SELECT {merge}(ids) FROM {table} GROUP BY counter")
            done[size] = {"bytes": int(size_on_disk) / number, "counts": [int(count) for [count] in rows]}
    return done


STEPS = {"convert": convert, "load": load, "sizes": sizes}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
