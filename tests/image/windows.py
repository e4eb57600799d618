"""Reads the records of Kafka's topic on standard input: each window must be there once, without a gap.

    windows.py SECONDS
"""

import datetime
import json
import sys

step = datetime.timedelta(seconds=int(sys.argv[1]))
windows = [
    datetime.datetime.fromisoformat(json.loads(line)["timestamp"].replace("Z", "+00:00")) for line in sys.stdin
]
if not windows:
    sys.exit("no window is there")
for before, window in zip(windows, windows[1:]):
    if window - before != step:
        sys.exit(f"{before} is followed by {window}")
print(f"{len(windows)} windows, each once")
