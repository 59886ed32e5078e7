"""What logs say, what they never say, and that nobody writes lines of their own into them."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest
from served import completion, served

from forerun.server.logs import ID_LIMIT, TEXT_LIMIT, RequestLog, configure
from forerun.types import InvalidInputError

NAMES = ("", "forerun", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def logs():
    """Configures the process's logs into a string, and puts them back as they were."""
    kept = [(name, logging.getLogger(name)) for name in NAMES]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for _, logger in kept]
    stream = io.StringIO()

    def start(*arguments, **named):
        configure(*arguments, stream=stream, **named)
        return stream

    yield start
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_request_is_one_line_of_json(logs):
    stream = logs("json")
    RequestLog().finished(served())
    entry = json.loads(stream.getvalue())
    assert entry.pop("time").endswith("Z") and stream.getvalue().count("\n") == 1
    assert entry == {
        "level": "info", "logger": "forerun.server.requests", "message": "request", "request_id": "req-1", "method": "POST", "route": "/v1/chat/completions",
        "status": 200, "seconds": 2.6, "tenant": "alice", "prompt_tokens": 11, "output_tokens": 5, "cached_tokens": 6, "queue_seconds": 0.2,
        "first_token_seconds": 0.5, "finish_reasons": "stop", "preemptions": 1, "drafted_tokens": 4, "accepted_tokens": 3, "acceptance_length": 2.5,
    }  # fmt: skip


def test_a_request_is_one_line_of_text(logs):
    stream = logs("text")
    RequestLog().finished(served(completions=[completion(), completion(finish_reason="length")], tenant="the lab"))
    line = stream.getvalue()
    assert " INFO forerun.server.requests: request request_id=req-1 method=POST route=/v1/chat/completions status=200 " in line
    assert ' tenant="the lab" ' in line and ' finish_reasons="stop,length" ' in line and line.count("\n") == 1


def test_a_refused_request_names_the_field_and_not_the_value(logs):
    stream = logs("json")
    refused = {"params": None, "completions": [], "status": 400, "error_type": "invalid_request_error"}
    RequestLog().finished(served(error_param="messages[0].content", **refused))
    RequestLog().finished(served(error_param="a whole PRIVATE PROMPT as a field", **refused))
    one, other = map(json.loads, stream.getvalue().splitlines())
    assert one["param"] == "messages[0].content" and "param" not in other and one["level"] == "info"
    assert "prompt_tokens" not in one and "acceptance_length" not in one and one["error"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("ended", "level"),
    [
        ({"status": 500, "error_type": "server_error"}, "error"), ({"status": 200, "error_type": "server_error"}, "error"), ({"status": 429, "error_type": "x"}, "info"),
        ({"status": None, "is_aborted": True}, "info"), ({"route": "/health"}, "debug"), ({"route": "/ready", "status": 503, "error_type": "x"}, "error"),
    ],
)  # fmt: skip
def test_levels(logs, ended, level):
    stream = logs("json", "debug")
    RequestLog().finished(served(**ended))
    assert json.loads(stream.getvalue())["level"] == level


def test_a_level_silences_what_is_below(logs):
    stream = logs("text", "error")
    RequestLog().finished(served())
    logging.getLogger("uvicorn.error").info("started")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("evil", ["a\nERROR forged: line", "a\r\nb", "\x1b[2J", "\u2028x", "\x85", "\u202egnp", "\x00", "\x7f", 'a" status=200 "', "\U000e0001"])
def test_header_borne_values_cannot_write_lines_or_terminal_codes(logs, log_format, evil):
    stream = logs(log_format)
    RequestLog(with_text=True).finished(served(request_id=evil, tenant=evil, method=evil, body=evil))
    logging.getLogger("forerun.server").warning("%s", evil)
    text = stream.getvalue()
    assert text.endswith("\n") and len(text[:-1].splitlines()) == 3
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert "\nERROR" not in text
    if log_format == "json":
        assert json.loads(text.splitlines()[0])["request_id"] == evil  # nothing is lost either
    else:
        assert re.sub(r'"(\\.|[^"\\])*"', "", text.splitlines()[0]).count(" status=") == 1  # what is not quoted is ours


def test_ids_are_bounded(logs):
    stream = logs("json")
    RequestLog().finished(served(request_id="x" * 10_000))
    assert len(json.loads(stream.getvalue())["request_id"]) == ID_LIMIT


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_text_of_a_request_unless_asked_for(logs, log_format):
    stream = logs(log_format, "debug")
    RequestLog().finished(served())
    assert "PRIVATE" not in stream.getvalue()
    RequestLog(with_text=True).finished(served(body="p" * 3 * TEXT_LIMIT))
    marked = stream.getvalue().splitlines()[-1]
    assert "TEXT OF A REQUEST" in marked and "PRIVATE OUTPUT" in marked and "p" * (TEXT_LIMIT + 1) not in marked and f"({3 * TEXT_LIMIT} characters)" in marked


def fail(logger):
    try:
        try:
            raise InvalidInputError("prompt", "PRIVATE PROMPT", "shorten it")
        except InvalidInputError as error:
            raise KeyError("PRIVATE KEY") from error
    except KeyError:
        try:
            raise RuntimeError("out of memory\nERROR forged")
        except RuntimeError:
            logger.exception("it broke")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_errors_are_traced_without_what_they_quote(logs, log_format):
    stream = logs(log_format)
    fail(logging.getLogger("forerun.engine"))
    text = stream.getvalue()
    assert "PRIVATE" not in text and "RuntimeError: out of memory\\" in text and "\nERROR" not in text
    assert text.index("RuntimeError") < text.index("builtins.KeyError: (message withheld") < text.index("InvalidInputError: (message withheld")
    assert "test_logs.py" in text and " in fail" in text
    if log_format == "json":
        assert len(text.splitlines()) == 1 and json.loads(text)["trace"]


def test_errors_say_all_where_texts_may_be_logged(logs):
    stream = logs("text", with_text=True)
    fail(logging.getLogger("forerun.engine"))
    assert "PRIVATE KEY" in stream.getvalue() and "PRIVATE PROMPT" in stream.getvalue()


def test_errors_of_a_group_are_told(logs):
    stream = logs("text")
    try:
        raise ExceptionGroup("several", [OSError("disk"), ValueError("PRIVATE")])
    except ExceptionGroup:
        logging.getLogger("forerun").exception("it broke")
    assert "OSError: disk" in stream.getvalue() and "ValueError: (message" in stream.getvalue() and "PRIVATE" not in stream.getvalue()


def test_other_libraries_are_heard_from_warnings_on_and_uvicorns_own_lines_never(logs):
    stream = logs("text", "debug")
    logging.getLogger("httpcore").debug("Authorization: Bearer SECRET")
    logging.getLogger("uvicorn.access").info("GET /?key=SECRET")
    assert stream.getvalue() == ""
    logging.getLogger("httpcore").warning("careful")
    logging.getLogger("uvicorn.error").info("started")
    assert [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()] == ["WARNING httpcore: careful", "INFO uvicorn.error: started"]
