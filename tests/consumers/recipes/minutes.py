"""How many calls ended, and how many minutes were spoken, by application.

    sendbird-bridge demo | python3 minutes.py
"""
import json

from envelopes import lines, once


def minutes(events):
    """For each application its calls, those of them whose duration is not known, and the milliseconds of the others."""
    totals = {}
    for event in once(events):
        data = event["data"]
        if data["category"] != "direct_call:end":
            continue
        total = totals.setdefault(data["application_id"], {"calls": 0, "unknown": 0, "duration_ms": 0})
        total["calls"] += 1
        # A call that nobody accepted lasted 0 ms; null means that Sendbird did not say.
        duration_ms = (data.get("call") or {}).get("duration_ms")
        if duration_ms is None:
            total["unknown"] += 1
        else:
            total["duration_ms"] += duration_ms
    return totals


if __name__ == "__main__":
    for application, total in minutes(lines()).items():
        print(json.dumps({"application_id": application, **total, "minutes": round(total["duration_ms"] / 60_000, 2)}))
