"""JSON as the standard has it, and no deeper than anybody needs."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from forerun.server.errors import ApiError

MAX_NESTING = 96  # of a body: a schema of 64 levels fits where requests carry one


class StrictRequest(Request):
    """Reads JSON as the standard has it: no NaN, no doubled names, no half characters, no nesting without end."""

    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            self._strict = strict_json(await self.body())
        return self._strict


def strict_json(body: bytes) -> Any:
    """Raises ApiError (400) for what is no JSON."""
    try:
        value = json.loads(body, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_doubles)
    except RecursionError as error:
        raise _too_deep() from error
    except (ValueError, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, (_Unfit, json.JSONDecodeError)) else "numbers or characters that JSON cannot have"
        raise ApiError(400, f"the body is no JSON: {why}", code="invalid_json") from error
    _check(value, surrogates=b"\\u" in body)
    return value


class _Unfit(ValueError):
    pass


def _too_deep() -> ApiError:
    return ApiError(400, f"the body's JSON is nested over {MAX_NESTING} levels deep", code="invalid_json")


def _no_constant(name: str) -> Any:
    raise _Unfit(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Unfit(f"{text[:40]} is too large a number")
    return value


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Unfit(f"{double[:100]!r} stands twice in one object")
    return made


def _check(value: Any, surrogates: bool) -> None:
    """Depth, and characters that are halves of two. Level by level: no recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_NESTING and any(isinstance(each, (dict, list)) for each in level):
            raise _too_deep()
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
                if surrogates:
                    below.extend(each)
            elif isinstance(each, list):
                below.extend(each)
            elif surrogates and isinstance(each, str) and not _is_text(each):
                raise ApiError(400, "the body holds half a character (a lone surrogate)", code="invalid_json")
        level = below


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
