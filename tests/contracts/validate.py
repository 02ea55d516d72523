"""Owns: the judgement of jsonschema (JSON Schema 2020-12) and of openapi-spec-validator (OpenAPI 3.1).

Promises: every schema is valid by its meta-schema, every event by the schema of any envelope, by that of its type and, its
data, by that which its `dataschema` names, formats included; broken events are not; the OpenAPI document is valid. Prints
what is wrong, and exits 1 then.

Usage: validate.py DOCUMENTS EVENTS, with a directory of documents and a file of envelopes, one a line
"""

import copy
import json
import pathlib
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

BASE = "urn:sendbird-bridge:schema:"

faults = []


def read(path):
    return json.loads(path.read_text())


def schemas(documents):
    by_id = {}
    paths = sorted(documents.glob("schemas/*.json"))
    for path in paths:
        schema = read(path)
        for error in Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema):
            faults.append(f"{path.name}: {error.message}")
        if "$id" in schema:
            by_id[schema["$id"]] = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    print(f"jsonschema: {len(paths)} schemas")
    return by_id


def errors(by_id, event):
    for name, value in [
        (f"{BASE}envelope:v1", event),
        (f"{BASE}{event['type']}:v1", event),
        (event["dataschema"], event["data"]),
    ]:
        validator = by_id.get(name)
        if validator is None:
            yield f"there is no schema {name}"
        else:
            for error in validator.iter_errors(value):
                yield f"by {name} at {error.json_path}: {error.message}"


def judge(by_id, lines):
    events = [json.loads(line) for line in lines]
    for event in events:
        faults.extend(f"{event['id']} {error}" for error in errors(by_id, event))
    print(f"jsonschema: {len(events)} events")
    caught(by_id, events[0])


def caught(by_id, event):
    """A validator that finds nothing anywhere would pass everything."""

    def breaks(what, change):
        broken = copy.deepcopy(event)
        change(broken)
        if not list(errors(by_id, broken)):
            faults.append(f"expected the schemas to refuse an event with {what}, but found that they take it")

    breaks("no id", lambda it: it.pop("id"))
    breaks("an id that is no UUIDv8", lambda it: it.update(id="x"))
    breaks("a time without milliseconds", lambda it: it.update(time="2026-01-01T00:00:00Z"))
    breaks("a text as replayed", lambda it: it.update(replayed="true"))
    breaks("no raw", lambda it: it["data"].pop("raw"))
    breaks("a text as occurred_at_ms", lambda it: it["data"].update(occurred_at_ms="1"))
    breaks("neither call nor room", lambda it: [it["data"].pop(name, None) for name in ("call", "room")])
    breaks("both call and room", lambda it: it["data"].update(call={}, room={}))


def main():
    documents, events = map(pathlib.Path, sys.argv[1:])
    judge(schemas(documents), events.read_text().splitlines())
    for error in OpenAPIV31SpecValidator(read(documents / "openapi.json")).iter_errors():
        faults.append(f"openapi.json at {error.json_path}: {error.message}")
    print("openapi-spec-validator: openapi.json")
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


main()
