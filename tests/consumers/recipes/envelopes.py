"""What the recipes share: envelopes from lines, and each event once."""
import json
import queue
import sys
import threading


def lines(file=sys.stdin):
    """One envelope a line, as `sendbird-bridge demo` and `tail` print them."""
    return (json.loads(line) for line in file)


def lines_and_pauses(file=sys.stdin, pause_s=1):
    """The same, and None whenever nothing has come for a while, and at the end."""
    read = queue.Queue(maxsize=1000)

    def fill():
        for line in file:
            read.put(json.loads(line))
        read.put("end")

    threading.Thread(target=fill, daemon=True).start()
    event = None
    while event != "end":
        try:
            event = read.get(timeout=pause_s)
            yield event if event != "end" else None
        except queue.Empty:
            yield None


def once(events, remember=1_000_000):
    """Each event's first copy. Where a copy may come after `remember` others, keep the ids in your database."""
    ids = {}
    for event in events:
        if event is None:  # a pause
            yield event
        elif event["id"] not in ids:
            ids[event["id"]] = None
            if len(ids) > remember:
                del ids[next(iter(ids))]  # the oldest
            yield event
