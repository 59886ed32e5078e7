"""Logs of a server: one line a request, in words or JSON, without what people wrote to the model and without keys."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from forerun.server.served_request import PROBES, ServedRequest
from forerun.types import ForerunError, SpeculationStats

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

TEXT_LIMIT = 2000  # characters of a body or output, where logs of them were asked for
ID_LIMIT = 128
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./:@%+-]+")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,63}")
# their messages speak of the machine or are forerun's own; messages of other errors quote values, which may be somebody's text
_TELLING = (OSError, RuntimeError, MemoryError, ImportError, ForerunError)

logger = logging.getLogger("forerun.server.requests")


def configure(log_format: LogFormat = "text", level: LogLevel = "info", *, with_text: bool = False, stream: TextIO | None = None) -> logging.Handler:
    """Sends the whole process's logs to one handler (standard error); uvicorn, run with `log_config=None`, has no lines of its own for requests.

    `level` is forerun's and uvicorn's; other libraries are heard from `warning` on, since some of them tell headers and bodies at lower levels.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(with_text) if log_format == "json" else TextFormatter(with_text))
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    for name in ("forerun", "uvicorn", "uvicorn.error"):
        named = logging.getLogger(name)
        named.handlers.clear()
        named.propagate = True
        named.setLevel(number)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    return handler


class RequestLog:
    """Writes a line a request. With `with_text` a second one holds what was sent and the outputs, cut short, and says so."""

    def __init__(self, with_text: bool = False) -> None:
        self._with_text = with_text

    def arrived(self, request: ServedRequest) -> None:
        """The line is written at the end."""

    def progressed(self, request: ServedRequest, index: int, num_tokens: int) -> None:
        """The line is written at the end."""

    def finished(self, request: ServedRequest) -> None:
        level = logging.INFO
        if request.error_type is not None and (request.status is None or not 400 <= request.status < 500):
            level = logging.ERROR
        elif request.route in PROBES and request.status == 200:
            level = logging.DEBUG
        logger.log(level, "request", extra={"fields": _told(request)})
        if self._with_text and request.body is not None:
            texts = {"body": _cut(request.body), "outputs": [_cut(completion.text) for completion in request.completions]}
            logger.info("TEXT OF A REQUEST, as --log-requests asks", extra={"fields": {"request_id": request.request_id[:ID_LIMIT]} | texts})


def _told(request: ServedRequest) -> dict[str, Any]:
    """What the line says; fields that a request has not are left out."""
    fields: dict[str, Any] = {
        "request_id": request.request_id[:ID_LIMIT],
        "method": request.method[:16],
        "route": request.route or "none",
        "status": request.status,
        "seconds": round(request.seconds, 6),
        "tenant": request.tenant,
        "aborted": request.is_aborted or None,
        "error": request.error_type,
        "param": request.error_param if request.error_param and _FIELD_NAME.fullmatch(request.error_param) else None,
    }
    if request.params is not None:
        fields |= {"prompt_tokens": request.num_prompt_tokens, "output_tokens": request.num_output_tokens}
    if request.completions:
        times = request.completions[0].times
        total = SpeculationStats()
        for completion in request.completions:
            total.add(completion.stats)
        fields |= {
            "cached_tokens": times.num_cached_tokens,
            "queue_seconds": _between(times.arrived, times.scheduled),
            "first_token_seconds": _between(times.arrived, times.first_token),
            "finish_reasons": ",".join(request.finish_reasons),
            "preemptions": sum(completion.times.num_preemptions for completion in request.completions),
            "drafted_tokens": total.num_draft_tokens,
            "accepted_tokens": total.num_accepted_tokens,
            "acceptance_length": round(total.acceptance_length, 3),
        }
    return {name: value for name, value in fields.items() if value is not None}


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO forerun.server.requests: request status=200 ...`; values that are not plain are quoted."""

    def __init__(self, with_text: bool = False) -> None:
        super().__init__()
        self._with_text = with_text

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_value(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_moment(record)} {record.levelname} {record.name}: {escaped(record.getMessage())}{fields}"
        return "\n".join([line, *(f"    {escaped(each)}" for each in _trace(record, self._with_text))])


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, with_text: bool = False) -> None:
        super().__init__()
        self._with_text = with_text

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _moment(record), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        trace = list(_trace(record, self._with_text))
        return json.dumps(entry | getattr(record, "fields", {}) | ({"trace": trace} if trace else {}))


def escaped(text: str) -> str:
    """Everything that does not print (line ends, terminal codes, marks that turn the writing direction) as an escape."""
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" if ord(each) < 0x10000 else f"\\U{ord(each):08x}" for each in text)


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if _PLAIN_VALUE.fullmatch(text) else escaped(json.dumps(value, ensure_ascii=False))


def _trace(record: logging.LogRecord, with_text: bool) -> Iterator[str]:
    """The error of a record and what caused it, line by line, the outermost first."""
    error = record.exc_info[1] if record.exc_info else None
    return _lines(error, with_text, set())


def _lines(error: BaseException | None, with_text: bool, told: set[int]) -> Iterator[str]:
    if error is None or id(error) in told:
        return
    told.add(id(error))
    shows = with_text or (isinstance(error, _TELLING) and not isinstance(error, ValueError))
    message = str(error) if shows else "(message withheld: it may quote a request; --log-requests shows it)"
    yield f"{type(error).__module__}.{type(error).__qualname__}: {message}"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"  at {frame.filename}:{frame.lineno} in {frame.name}"
    for cause in (*(error.exceptions if isinstance(error, BaseExceptionGroup) else ()), error.__cause__ or (None if error.__suppress_context__ else error.__context__)):
        yield from _lines(cause, with_text, told)


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _between(before: float, after: float | None) -> float | None:
    return None if after is None else round(after - before, 6)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}... ({len(text)} characters)"
