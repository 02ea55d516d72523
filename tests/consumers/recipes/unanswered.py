"""Whom to notify: callees of direct calls that nobody accepted, and that did not end, within some seconds.

    sendbird-bridge demo | python3 unanswered.py 20
    sendbird-bridge tail --after end | python3 unanswered.py 20
"""
import json
import sys
import time
from datetime import datetime

from envelopes import lines_and_pauses, once


class Unanswered:
    """Each method returns the calls to tell of, each call once."""

    def __init__(self, within_s):
        self.within_ms = within_s * 1000
        self.ringing = {}

    def on(self, event):
        """For each event. An answer that came too late shows here, however fast events are read."""
        if event.get("replayed") or event.get("reconciled"):
            return []  # it tells of the past, and nobody is to be told of that
        data = event["data"]
        call = data.get("call") or {}
        key, at_ms = event["partitionkey"], milliseconds(event["time"])
        if data["category"] == "direct_call:dial":
            self.ringing[key] = {
                "call_id": call.get("call_id"), "caller_id": call.get("caller_id"),
                "callee_id": call.get("callee_id"), "due_ms": at_ms + self.within_ms,
            }
        elif data["category"] in ("direct_call:accept", "direct_call:end"):
            rang = self.ringing.pop(key, None)
            if rang and at_ms > rang["due_ms"]:
                return [rang]
        return []

    def due(self, now_ms):
        """In each pause, when all that is there has been read: the answer may be among what waits to be read."""
        late = [key for key, rang in self.ringing.items() if rang["due_ms"] < now_ms]
        return [self.ringing.pop(key) for key in late]


def milliseconds(timestamp):
    return round(datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp() * 1000)


def unanswered(events, within_s, now_ms):
    """The same over events that are all there, as of now_ms."""
    calls = Unanswered(within_s)
    for event in once(events):
        yield from calls.on(event)
    yield from calls.due(now_ms)


if __name__ == "__main__":
    calls = Unanswered(within_s=float(sys.argv[1]) if len(sys.argv) > 1 else 20)
    for event in once(lines_and_pauses()):
        for call in calls.on(event) if event else calls.due(time.time() * 1000):
            print(json.dumps(call), flush=True)
