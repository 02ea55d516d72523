"""Who is in each room at the moment.

    sendbird-bridge demo | python3 occupancy.py
"""
import json

from envelopes import lines, once

ENTERS = "room:participant_enter"
LEAVES = ("room:participant_exit", "room:participant_disconnect")


def occupancy(events, rooms=None):
    """After each change: the room, and how many are in it. `rooms` holds who that is.

    Each entry has a participant_id of its own, so somebody with two devices is in the room twice.
    """
    rooms = {} if rooms is None else rooms
    for event in once(events):
        if event.get("replayed"):
            continue  # it tells of the past, and this is about now
        category, room_id = event["data"]["category"], event["partitionkey"]
        person = event["data"].get("participant") or {}
        entry = person.get("participant_id")
        if category == ENTERS:
            rooms.setdefault(room_id, {})[entry] = person.get("user_id")
        elif category in LEAVES:
            # Who is not there entered before the first event that was read.
            rooms.get(room_id, {}).pop(entry, None)
        elif category == "room:delete":
            rooms.pop(room_id, None)
        else:
            continue
        yield room_id, len(rooms.get(room_id, {}))


if __name__ == "__main__":
    for room_id, inside in occupancy(lines()):
        print(json.dumps({"room_id": room_id, "inside": inside}), flush=True)
