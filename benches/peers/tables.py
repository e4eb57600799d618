"""The figures of all rounds, and the tables that show them."""

from measuring import median


class Result:
    """Samples by the name of their row."""

    def __init__(self):
        self.speeds, self.answers, self.memory = {}, {}, {}

    def speed(self, row, sample):
        self.speeds.setdefault(row, []).append(sample)

    def questions(self, row, counters, days):
        self.answers.setdefault(row, []).append({"counters": counters, "days": days})

    def size(self, row, size, bytes_each, error=None):
        self.memory.setdefault(row, {})[size] = {"bytes": bytes_each, "rms": error}

    def as_json(self):
        return {"speed": self.speeds, "questions": self.answers, "memory": self.memory}


def show(result, left_out, rounds):
    if result.speeds:
        of_rounds = "1 round" if rounds == 1 else f"{rounds} rounds"
        print(f"\n## Speed\n\nMedians of {of_rounds}. An id is a pair of an id and a counter.\n")
        table(["", "ids a second", "CPU, µs an id"], [
            [row, number(middle(samples, "ids_per_second")), number(middle(samples, "cpu_micros"))]
            for row, samples in result.speeds.items()])
    sizes = sorted({size for of_row in result.memory.values() for size in of_row})
    if sizes:
        print("\n## Memory and error\n\nOf counters of so many different ids: bytes of one, and root-mean-square error in %.\n")
        head = [f"{what}, {number(size)} ids" for what in ("bytes", "error") for size in sizes]
        table(["", *head], [
            [row, *(number(of_row[size]["bytes"]) for size in sizes), *(percent(of_row[size]["rms"]) for size in sizes)]
            for row, of_row in result.memory.items()])
    if result.answers:
        print("\n## Questions\n\nMedians, in ms: the count of each of 1 000 counters in a minute, when first asked and when "
              "asked again; the union of 35 days, asked again.\n")
        table(["", "1 000 counters, first", "1 000 counters, again", "35 days"], [
            [row, *(number(middle([sample[of] for sample in samples], key))
                    for of, key in (("counters", "first_ms"), ("counters", "again_ms"), ("days", "again_ms")))]
            for row, samples in result.answers.items()])
    for peer, why in left_out.items():
        print(f"\n{peer} is left out: {why}.")


def table(head, rows):
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def middle(samples, key):
    return median([sample[key] for sample in samples]) if all(key in sample for sample in samples) else None


def percent(error):
    return "" if error is None else f"{error * 100:.2f}"


def number(value):
    """Three digits that mean something."""
    if value is None:
        return ""
    digits = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    if value >= 10_000:
        digits = f"{float(f'{value:.3g}'):.0f}"
    whole, _, part = digits.partition(".")
    return f"{int(whole):,}".replace(",", " ") + (f".{part}" if part else "")
