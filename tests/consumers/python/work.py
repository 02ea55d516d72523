"""The work of these examples, and the memory of what was worked on already.

The work is a line in a file, and the event's id stands in that line, so that after a crash both are there or neither.
Yours is a database: make the id the primary key of a table, and insert it in the transaction that does the work.
"""
import json
import os
import signal


def read(body):
    """The envelope; None for a poison message, which no retry will fix."""
    try:
        event = json.loads(body)
        return event if isinstance(event["id"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


class Work:
    def __init__(self, path, remember=1_000_000):
        self.file = open(path, "a+b", buffering=0)
        self.file.seek(0)
        # The oldest first. An id may be forgotten once no copy of its event can come any more.
        self.ids = dict.fromkeys(json.loads(line)["id"] for line in self.file)
        self.remember = remember
        # For the test: dies after so many, with the work done and nothing said of it to the broker.
        self.crash_after = int(os.environ.get("CRASH_AFTER", 0))

    def once(self, event):
        """Does the work, and says whether it did: not if the id is known."""
        if event["id"] in self.ids:
            return False
        line = {name: event[name] for name in ("id", "type", "partitionkey")}
        self.file.write(json.dumps(line).encode() + b"\n")
        os.fsync(self.file.fileno())
        self.ids[event["id"]] = None
        if len(self.ids) > self.remember:
            del self.ids[next(iter(self.ids))]
        self.crash_after -= 1
        if self.crash_after == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return True
