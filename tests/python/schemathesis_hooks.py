"""What schemathesis must know about the service beyond its description: see tests/it/openapi.rs."""

import os
import re
import time

import schemathesis
from schemathesis.core import NOT_SET

# What a parameter of a range may look like.
TIME = re.compile(r"[0-9]{1,11}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,}(Z|[+-][0-9:]{5})")
# The name of a counter.
NAME = re.compile(r"[A-Za-z0-9_.:/@-]{1,128}")
LINES = ["text/plain", "application/x-ndjson"]

# Bodies of both types are sent unchanged.
schemathesis.serializer.alias("application/x-ndjson", "text/plain")


@schemathesis.deserializer("text/plain")
def text(ctx, response):
    """Lets schemathesis check answers of one word against the schema, too."""
    return response.content.decode()


@schemathesis.hook
def before_call(ctx, case, **kwargs):
    """Keeps callbacks from leaving this machine, and corrects what a schema cannot express."""
    # schemathesis may generate any host, and the service would send callbacks there.
    if case.query and is_url(case.query.get("endpoint")):
        case.query = {**case.query, "endpoint": "http://hooks.invalid/"}
    # A schema cannot say which times begin a window, nor which are kept.
    # Nor that both are needed, that these windows of a day have no hours, and that the running day of a counter is not kept.
    times = [name for name in ["from", "to"] if name in (case.query or {})]
    if times and all(is_time(case.query[name]) for name in times):
        if case.query.get("step") == "hour":
            case.query = {**case.query, "step": "day"}
        if case.path.endswith("/series") and NAME.fullmatch(str(case.query.get("counter", ""))):
            case.query = {name: value for name, value in case.query.items() if name != "counter"}
        window = int(os.environ["HEADCOUNT_TEST_WINDOW"])
        start = int(time.time()) // window * window
        case.query = {**case.query, "from": str(start), "to": str(start + window)}
    # A schema cannot say that two names must be different where a name may also be repeated.
    names = (case.query or {}).get("counter")
    if case.path.endswith("/overlap") and isinstance(names, list) and 2 <= len(names) <= 8 and all(NAME.fullmatch(str(name)) for name in names):
        different = list(dict.fromkeys(names))
        case.query = {**case.query, "counter": different if len(different) > 1 else ["a", "b"]}
    # A schema cannot say that one parameter needs another.
    if case.query and "after" in case.query and case.query.get("order", "count") == "count":
        case.query = {**case.query, "order": "name"}
    # In JSON Schema 5.0 is an integer. The service reads the text, and refuses it.
    if isinstance(case.body, list):
        case.body = [element_of(element, case.query) for element in case.body]
    # Lines must be text: schemathesis would send a number as its digits, which are a valid id. A pattern has no range, so
    # long ids are cut to 18 digits, which always fit.
    if case.media_type in LINES and case.body is not NOT_SET:
        case.body = re.sub("[0-9]{19,}", lambda digits: digits[0][:18], str(case.body))


def element_of(element, query):
    """An element as the service reads it."""
    if is_integral(element):
        return int(element)
    if isinstance(element, dict) and isinstance(element.get("counters"), list):
        names = (query or {}).get("counter", [])
        room = 8 - len(names if isinstance(names, list) else [names])
        id = element.get("id")
        return {**element, "id": int(id) if is_integral(id) else id, "counters": element["counters"][:max(room, 0)]}
    return element


def is_time(value):
    return isinstance(value, str) and TIME.fullmatch(value)


def is_url(value):
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def is_integral(value):
    return isinstance(value, float) and value.is_integer()
