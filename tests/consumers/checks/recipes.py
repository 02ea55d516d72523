"""Owns: what must hold for the recipes of docs/consumers.md.

Promises: on the demo's day each recipe's answer is the one that the deliveries themselves (`data.raw`) give by another
way, whether events come once, twice, as replays or in another order across keys; nobody is told of reconciled calls.
"""
import json
import random
import subprocess
import sys
import time
from collections import defaultdict

from support import HERE, Program, eventually

sys.path.insert(0, str(HERE / "recipes"))
# pylint: disable=wrong-import-position
from minutes import minutes
from occupancy import occupancy
from unanswered import unanswered

WITHIN_S = 20
LEAVES = {"room:participant_exit", "room:participant_disconnect"}


def deliveries(events):
    """The deliveries as Sendbird sent them, of each call and room, by the time that they tell."""
    keys = defaultdict(list)
    for raw in (event["data"]["raw"] for event in events):
        key = raw.get("direct_call", {}).get("call_id") or raw.get("room", {}).get("room_id")
        keys[key].append(raw)
    return {key: sorted(raws, key=lambda raw: raw["occurred_at"]) for key, raws in keys.items()}


def expect_unanswered(day):
    found = set()
    for key, raws in day.items():
        at = {raw["category"]: raw["occurred_at"] for raw in raws}
        if "direct_call:dial" in at:
            answered = min(at.get("direct_call:accept", float("inf")), at.get("direct_call:end", float("inf")))
            if answered - at["direct_call:dial"] > WITHIN_S * 1000:
                found.add((key, raws[0]["direct_call"]["callee_id"]))
    return found


def expect_minutes(day):
    totals = defaultdict(lambda: {"calls": 0, "unknown": 0, "duration_ms": 0})
    for raws in day.values():
        for raw in raws:
            if raw["category"] == "direct_call:end":
                totals[raw["application_id"]]["calls"] += 1
                totals[raw["application_id"]]["duration_ms"] += raw["direct_call"]["duration"]
    return dict(totals)


def expect_occupancy(day):
    """For each room how many entries there were before, less those that were left."""
    rooms = {}
    for key, raws in day.items():
        for number, raw in enumerate(raws):
            if raw["category"] in LEAVES | {"room:participant_enter", "room:delete"}:
                before = [each["category"] for each in raws[: number + 1]]
                entered, left = before.count("room:participant_enter"), sum(each in LEAVES for each in before)
                rooms.setdefault(key, []).append(0 if "room:delete" in before else entered - left)
    return rooms


def answers(events):
    now_ms = time.time() * 1000
    called = [(call["call_id"], call["callee_id"]) for call in unanswered(events, WITHIN_S, now_ms)]
    rooms = defaultdict(list)
    for room, inside in occupancy(events):
        rooms[room].append(inside)
    return {"unanswered": sorted(called), "minutes": minutes(events), "occupancy": dict(rooms)}


def shuffled(events, seed):
    """Another order across keys, the same within each."""
    dice, queues = random.Random(seed), defaultdict(list)
    for event in events:
        queues[event["partitionkey"]].append(event)
    order = [event["partitionkey"] for event in events]
    dice.shuffle(order)
    return [queues[key].pop(0) for key in order]


def check(checks):
    done = subprocess.run([checks.options.bridge, "demo"], capture_output=True, text=True, timeout=120, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    day = deliveries(events)
    expected = {
        "unanswered": sorted(expect_unanswered(day)), "minutes": expect_minutes(day), "occupancy": expect_occupancy(day),
    }
    replays = [{**event, "replayed": True} for event in events]
    ways = {
        "as it comes": events,
        "each event twice": [event for event in events for _ in range(2)],
        "all of it twice, as replays": events + replays,
        "replays among what is new": [event for pair in zip(events, [None, *replays]) for event in pair if event],
        **{f"in another order across keys ({seed})": shuffled(events, seed) for seed in range(5)},
    }
    for recipe, answer in expected.items():
        faults = [f"{way}: expected {answer}, but found {found}"
                  for way, each in ways.items() if (found := answers(each)[recipe]) != answer]
        checks.report(f"recipe: {recipe}", faults, len(ways) * len(answer))
    found = answers([{**event, "reconciled": True} for event in events])["unanswered"]
    checks.report("recipe: unanswered: nobody is told of reconciled calls", [f"found {found}"] if found else [], 1)
    check_day(checks, expected)
    check_commands(checks, done.stdout, expected)
    check_live(checks, events)


def check_day(checks, expected):
    """What the demo's script says of its day, so that an empty answer is not right."""
    [total] = expected["minutes"].values()
    rows = {
        "14 calls": total["calls"] == 14,
        "some calls that rang too long, and some that did not": 1 <= len(expected["unanswered"]) < 14,
        "minutes": total["duration_ms"] > 60_000,
        "a room of three whom everybody leaves": [1, 2, 3, 2, 1, 0, 0] in expected["occupancy"].values(),
    }
    checks.report("the demo's day has what the recipes look for", [row for row, true in rows.items() if not true], len(rows))


def check_commands(checks, lines, expected):
    """`sendbird-bridge demo | python3 RECIPE`, and the demo's own duplicates are in none of the answers."""
    rows = {"unanswered": len(expected["unanswered"]), "minutes": 1, "occupancy": sum(map(len, expected["occupancy"].values()))}
    faults = []
    for recipe, count in rows.items():
        command = [sys.executable, HERE / "recipes" / f"{recipe}.py"]
        out = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)
        if out.returncode or len(out.stdout.splitlines()) != count:
            faults.append(f"{recipe}: expected {count} lines, but found {out.stdout}{out.stderr}")
    checks.report("each recipe reads the demo's lines", faults, len(rows))


def check_live(checks, events):
    """Of two calls that ring now one is accepted: the other is told of while nothing comes."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    dials = [event for event in events if event["data"]["category"] == "direct_call:dial"][:2]
    accept = next(event for event in events if event["data"]["category"] == "direct_call:accept")
    accept = {**accept, "partitionkey": dials[1]["partitionkey"]}
    program = Program([sys.executable, HERE / "recipes" / "unanswered.py", "2"],
                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    told = []
    for event in [*dials, accept]:
        program.process.stdin.write(json.dumps({**event, "time": now}) + "\n")
    program.process.stdin.flush()
    told.append(json.loads(program.process.stdout.readline()))
    program.process.stdin.close()
    told += [json.loads(line) for line in program.process.stdout]
    eventually("the recipe ends with its input", lambda: program.process.poll() is not None)
    found, wanted = [call["call_id"] for call in told], [dials[0]["partitionkey"]]
    faults = [] if found == wanted else [f"expected {wanted}, but found {found}"]
    checks.report("recipe: unanswered, while nothing comes", faults, len(told))
