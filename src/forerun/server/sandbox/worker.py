"""The sandbox's process: reads jobs as lines of JSON, answers each with one.

It is run as a file, by its path, and imports nothing of the package: that would bring in torch, and a gigabyte of it. The first line says what it
needs for good; it says it is ready when it has that. Whoever started it kills it where a job takes too long.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1


def main() -> None:
    # the answers get a pipe of their own: what a library prints must not end up among them
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    die_with_parent(int(sys.argv[1]))
    jobs = sys.stdin.buffer
    worker = Worker(json.loads(jobs.readline()))
    _answer(answers, {"ready": True})
    for line in jobs:
        _answer(answers, worker.run(json.loads(line)))


def die_with_parent(parent: int) -> None:
    """Also in the middle of a job, when nobody reads the pipe that closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class Worker:
    def __init__(self, settings: dict[str, Any]) -> None:
        from llguidance import LLMatcher, LLTokenizer
        from transformers.utils.chat_template_utils import render_jinja_template

        self._matcher = LLMatcher
        self._render: Any = render_jinja_template
        self._grammar_text = _load(settings["grammar_text"]).grammar_text
        self._tokenizer: Any = None
        self._tokenizer_error = "the target came without a tokenizer"
        if settings["tokenizer"] is not None:
            try:
                self._tokenizer = LLTokenizer(settings["tokenizer"], n_vocab=settings["num_tokens"], eos_token=settings["end_token_ids"])
            except ValueError as error:
                self._tokenizer_error = f"llguidance cannot read the tokenizer ({_first_line(error)})"
        self._rendered_bytes = settings["rendered_bytes"]
        _limit_for_good(settings["memory_bytes"])

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """`{"result": ...}`, `{"refused": why}`, or `{"limit": which}`: the caller ends this process then."""
        _limit_cpu(job["seconds"])
        try:
            return self._template(job) if job["kind"] == "template" else self._grammar(job)
        except MemoryError:
            return {"limit": "memory"}

    def _template(self, job: dict[str, Any]) -> dict[str, Any]:
        from jinja2.exceptions import SecurityError, TemplateError

        try:
            rendered, _ = self._render(conversations=[job["messages"]], **job["arguments"])
        except SecurityError:
            return {"refused": "the chat template does what templates may not do"}
        except TemplateError as error:  # the template's own words, by raise_exception
            return {"refused": f"the chat template refuses them ({_first_line(error)})"}
        except MemoryError:
            raise
        except Exception as error:  # a template may stumble over anything that it did not expect
            return {"refused": f"the chat template cannot write them ({type(error).__name__}): they lack a field it needs, or have one it does not know"}
        text = rendered[0]
        if len(text.encode("utf-8", "surrogatepass")) > self._rendered_bytes:
            return {"limit": "size"}
        return {"result": text}

    def _grammar(self, job: dict[str, Any]) -> dict[str, Any]:
        if self._tokenizer is None:
            return {"refused": self._tokenizer_error}
        try:
            grammar = self._grammar_text(job["name"], job["value"])
        except (ValueError, RecursionError) as error:
            return {"refused": f"cannot be read ({_first_line(error)})"}
        matcher = self._matcher(self._tokenizer, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # part of the work is left until the first token is asked for
        if matcher.is_error():
            return {"refused": f"cannot be honoured ({_first_line(matcher.get_error())}): change it"}
        return {"result": True}


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("grammar_text", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _limit_for_good(memory_bytes: int) -> None:
    """Some more memory than now, no files written, no core dumps."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, held + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1  # whole seconds: the wall's clock is the sharper limit
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(pipe: BinaryIO, answer: dict[str, Any]) -> None:
    pipe.write(json.dumps(answer).encode() + b"\n")
    pipe.flush()


def _first_line(error: object) -> str:
    lines = str(error).strip().split("\n")
    return lines[0].rstrip(":").strip()[:200]


if __name__ == "__main__":
    main()
