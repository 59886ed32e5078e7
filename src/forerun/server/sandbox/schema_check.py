"""What is refused of a grammar before anything reads it: its size, its nesting, references to other places."""

from __future__ import annotations

import json
from typing import Any

from forerun.config import StructuredOutputsParams
from forerun.server.sandbox.limits import SandboxLimits
from forerun.types import InvalidInputError


def check_size(asked: StructuredOutputsParams, field: str, limits: SandboxLimits) -> None:
    """Raises InvalidInputError naming `field`."""
    name, value = asked.chosen
    if name == "json":
        value = _read(value, field, limits)
        check_nesting(value, field, limits.schema_nesting)
        remote = _remote_reference(value)
        if remote is not None:
            raise InvalidInputError(field, remote, "a $ref may only point into the schema itself (#/...): nothing is fetched")
    length = len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else len(json.dumps(value))
    if length > limits.grammar_bytes:
        raise InvalidInputError(field, f"{length} bytes", f"give at most {limits.grammar_bytes}")


def check_nesting(value: Any, field: str, most: int) -> None:
    """Raises InvalidInputError for objects and lists within each other deeper than `most`; no recursion of its own."""
    level, depth = [value], 0
    while level := [inner for each in level for inner in _children(each)]:
        depth += 1
        if depth > most:
            raise InvalidInputError(field, "...", f"is nested deeper than {most}: make it flatter")


def _read(value: str | dict[str, Any], field: str, limits: SandboxLimits) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) > limits.grammar_bytes:
        raise InvalidInputError(field, f"{len(value)} characters", f"give at most {limits.grammar_bytes} bytes")
    try:
        return json.loads(value)
    except RecursionError:
        raise InvalidInputError(field, value, f"is nested deeper than {limits.schema_nesting}: make it flatter") from None
    except ValueError as error:
        raise InvalidInputError(field, value, f"is no JSON ({str(error).split(chr(10))[0]})") from error


def _remote_reference(schema: Any) -> str | None:
    level = [schema]
    while level:
        for each in level:
            if isinstance(each, dict):
                for key in ("$ref", "$dynamicRef", "$recursiveRef"):
                    target = each.get(key)
                    if isinstance(target, str) and not target.startswith("#"):
                        return target
        level = [inner for each in level for inner in _children(each)]
    return None


def _children(value: Any) -> list[Any]:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [each for each in within if isinstance(each, (dict, list, tuple))]
