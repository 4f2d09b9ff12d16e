"""The documented schema of `isblk status --json`, held against real answers: they are valid, and have no key that is not described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from isblk.cli.status import schema_text

SCHEMA: dict[str, Any] = json.loads(schema_text())


def check(*answers: dict[str, Any]) -> None:
    """AssertionError that names every place where daemons' answers are not as documented."""
    Draft202012Validator.check_schema(SCHEMA)
    document = json.loads(json.dumps({"version": 1, "mounts": list(answers)}))
    wrong = [f"{error.json_path}: {error.message:.200}" for error in Draft202012Validator(SCHEMA).iter_errors(document)]
    assert not wrong, wrong
    unknown = list(undocumented(document, SCHEMA, "$"))
    assert not unknown, f"keys that status.schema.json does not describe: {unknown}"


def undocumented(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """Keys of objects that have no property in the schema."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        for at, each in enumerate(value):
            yield from undocumented(each, schema.get("items", {}), f"{where}[{at}]")
    elif isinstance(value, dict) and ("properties" in schema or "additionalProperties" not in schema):
        for name, each in value.items():
            if name not in schema.get("properties", {}):
                yield f"{where}.{name}"
            else:
                yield from undocumented(each, schema["properties"][name], f"{where}.{name}")
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from undocumented(each, schema["additionalProperties"], f"{where}.{name}")
