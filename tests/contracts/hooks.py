"""Owns: what schemathesis can't know of the feed.

Promises: changes nothing that makes a request wrong. A feed that follows never ends, so each is asked to end at the end; and
which positions the journal has reached no schema says, so a position is one that it has.
"""

import os

import schemathesis

REACHED = int(os.environ["CONTRACTS_REACHED"])


def reached(value):
    text = str(value)
    return str(int(text) % (REACHED + 1)) if text.isascii() and text.isdigit() else value


@schemathesis.hook
def filter_case(context, case):
    """A parameter without any value is wrong, but the client leaves it out: nothing wrong would be sent."""
    query = case.query if isinstance(case.query, dict) else {}
    return all(value not in ([], {}) for value in query.values())


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.path != "/events":
        return
    query = dict(case.query or {})
    if str(query.get("follow", "true")).lower() == "true":
        query["follow"] = "false"
    if "after" in query:
        query["after"] = reached(query["after"])
    case.query = query
    for name in list(case.headers or {}):
        if name.lower() == "last-event-id":
            case.headers[name] = reached(case.headers[name])
