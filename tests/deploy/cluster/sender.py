"""Owns: a sender of deliveries that knows what became of each, as a program of its own. It is not the bridge's own `send`, so
that it does not share its errors.

Promises: sends at a fixed rate whatever the answers are, each delivery with its own call (TAG-NUMBER), each try with a
second to be answered. Without --keep each try is a connection of its own; with it, one that the other side has closed while it
was idle is not used again, as HTTP clients do it. It prints JSON: how each first try and each
delivery ended, the calls that were answered 200, the slowest answer, the longest time without an answer 200, and each of more than
half a second, as moments of the machine's monotonic clock.

Usage: sender.py URL TOKEN --tag TAG --rate N --seconds N [--tries N] [--keep] [--workers N]
Stops early, and prints, when its standard input ends.
"""

import argparse
import collections
import errno
import hashlib
import hmac
import http.client
import json
import select
import sys
import threading
import time
import urllib.parse

APPLICATION = "0A1B2C3D-1111-4222-8333-444455556666"


class Sender:
    """The deliveries and their outcomes."""

    def __init__(self, options):
        self.options = options
        self.url = urllib.parse.urlsplit(options.url)
        self.lock = threading.Lock()
        self.numbers = iter(range(int(options.rate * options.seconds)))
        self.begun = time.monotonic()
        self.first, self.last, self.seconds = collections.Counter(), collections.Counter(), []
        self.stored, self.failed_at, self.answered_at = [], [], []
        self.stopping = False

    def attempt(self, connection, body):
        """One try; how it ended."""
        headers = {
            "content-type": "application/json",
            "x-sendbird-signature": hmac.new(self.options.token.encode(), body, hashlib.sha256).hexdigest(),
        }
        if not self.options.keep:
            headers["connection"] = "close"
        elif connection.sock and select.select([connection.sock], [], [], 0)[0]:
            # Nothing is to be read between two requests but its end.
            connection.close()
        try:
            connection.request("POST", self.url.path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except TimeoutError:
            connection.close()
            return "timeout"
        except OSError as error:
            connection.close()
            return errno.errorcode.get(error.errno, type(error).__name__)
        except http.client.HTTPException as error:
            connection.close()
            return type(error).__name__

    def connect(self):
        """A connection that is made when it is first used."""
        return http.client.HTTPConnection(self.url.hostname, self.url.port or 80, timeout=1)

    def work(self):
        """Takes the next delivery when it is due, until there are no more."""
        connection = self.connect()
        while not self.stopping:
            with self.lock:
                number = next(self.numbers, None)
            if number is None:
                return
            time.sleep(max(0.0, self.begun + number / self.options.rate - time.monotonic()))
            call = f"{self.options.tag}-{number}"
            data = {"call_id": call, "caller_id": "alice", "callee_id": "bob", "custom_items": {}}
            at = int(time.time() * 1000)
            body = {"category": "direct_call:dial", "occurred_at": at, "application_id": APPLICATION, "direct_call": data}
            self.deliver(connection, call, json.dumps(body).encode())

    def deliver(self, connection, call, body):
        """All tries of one delivery."""
        for number in range(self.options.tries):
            begun = time.monotonic()
            outcome = self.attempt(connection, body)
            now = time.monotonic()
            if not self.options.keep:
                connection.close()
            with self.lock:
                self.seconds.append(now - begun)
                if number == 0:
                    self.first[outcome] += 1
                if outcome == "200":
                    self.stored.append(call)
                    self.answered_at.append(now)
                    break
                self.failed_at.append(round(now - self.begun, 1))
            if number + 1 < self.options.tries:
                time.sleep(0.2)
        with self.lock:
            self.last[outcome] += 1

    def await_end(self):
        """Stops when nobody wants more."""
        sys.stdin.buffer.read()
        self.stopping = True

    def run(self):
        """Sends all; the report."""
        threads = [threading.Thread(target=self.work) for _ in range(self.options.workers)]
        for thread in threads:
            thread.start()
        threading.Thread(target=self.await_end, daemon=True).start()
        for thread in threads:
            thread.join()
        seconds, answered = sorted(self.seconds) or [0.0], sorted(self.answered_at)
        pairs = list(zip(answered, answered[1:]))
        return {
            "first": self.first, "last": self.last, "stored": self.stored,
            "failed_from": min(self.failed_at, default=None), "failed_to": max(self.failed_at, default=None),
            "silence": round(max((end - begin for begin, end in pairs), default=0.0), 1),
            "silences": [pair for pair in pairs if pair[1] - pair[0] > 0.5],
            "p50_ms": round(seconds[len(seconds) // 2] * 1000, 1),
            "p99_ms": round(seconds[int(len(seconds) * 0.99)] * 1000, 1),
            "slowest_ms": round(seconds[-1] * 1000, 1),
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("token")
    parser.add_argument("--tag", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    # Enough to keep the rate while each try takes its second. Connections that are kept are so few that each is used more often than
    # once a second: a stopping bridge closes those that are idle for longer, and a delivery may just be on its way into one.
    options.workers = options.workers or (32 if options.keep else 200)
    print(json.dumps(Sender(options).run()))


if __name__ == "__main__":
    main()
