"""What clients decide the cost of runs in a process that is killed where it costs too much."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import EOS, VOCAB_SIZE, make_tokenizer

from forerun.config import StructuredOutputsParams
from forerun.sampling import grammar_text
from forerun.server.sandbox import Sandbox, SandboxLimits
from forerun.server.sandbox.process import WORKER
from forerun.types import InvalidInputError, OverloadedError, RequestFailedError, UnavailableError

LIMITS = SandboxLimits(template_seconds=60, grammar_seconds=60)  # the machine may be busy; what must be cut short says so itself
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


def run(job, limits=LIMITS, tokenizer=None):
    """What `job(sandbox)` returns."""

    async def inside():
        async with Sandbox(tokenizer or make_tokenizer(), VOCAB_SIZE, (EOS,), limits) as sandbox:
            return await job(sandbox)

    return asyncio.run(inside())


def render(sandbox, content="Hi", template=PLAIN, **arguments):
    return sandbox.render([{"role": "user", "content": content}], {"chat_template": template, **arguments})


async def refusal(awaitable) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        await awaitable
    return caught.value


def test_a_template_is_rendered_and_a_grammar_tried():
    async def job(sandbox):
        assert await render(sandbox, "Grüße \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")) == "Grüße 😀"
        assert await render(sandbox, template="{{ bos_token }}{{ tools | tojson }}", bos_token="<s>", tools=[{"a": 1}]) == '<s>[{"a": 1}]'
        for good in ({"json": {"type": "object"}}, {"regex": "[ab]+"}, {"choice": ["a", "b"]}, {"grammar": 'start: "a"'}, {"json_object": True}, {"grammar": 'root ::= "a"'}):
            await sandbox.check_grammar(StructuredOutputsParams(**good))

    run(job)


@pytest.mark.parametrize("name, value", [
    ("regex", "(a"), ("regex", "(?=a)b"), ("json", {"type": "nonsense"}), ("json", "{"), ("grammar", "start: nowhere"), ("json", {"$ref": "#/$defs/none"}),
])  # fmt: skip
def test_what_is_no_grammar_is_refused_by_name(shared, name, value):
    error = shared.refused(name, value)
    assert error.field == f"structured_outputs.{name}" and "File" not in str(error) and "/" + "usr" not in str(error)


@pytest.fixture(scope="module")
def shared():
    """One sandbox for the tests that leave its worker alive."""

    class Shared:
        def __init__(self, loop):
            self.loop = loop
            self.sandbox = Sandbox(make_tokenizer(), VOCAB_SIZE, (EOS,), LIMITS)

        def __call__(self, awaitable):
            return self.loop.run_until_complete(awaitable)

        def check(self, name, value):
            return self(self.sandbox.check_grammar(StructuredOutputsParams(**{name: value})))

        def refused(self, name, value):
            return self(refusal(self.sandbox.check_grammar(StructuredOutputsParams(**{name: value}))))

    loop = asyncio.new_event_loop()
    made = Shared(loop)
    made(made.sandbox.start())
    yield made
    made(made.sandbox.stop())
    loop.close()


def deep(levels: int) -> str:
    return '{"properties":{"a":' * levels + "{}" + "}}" * levels


def test_a_schema_is_read_only_within_its_limits(shared):
    shared.check("json", deep(20))
    for levels in (40, 10_000):
        error = shared.refused("json", deep(levels)) if levels == 40 else shared.refused("json", deep(3000))
        assert "nested deeper than 64" in str(error)
    assert "bytes" in str(shared.refused("json", deep(10_000)))
    assert "bytes" in str(shared.refused("regex", "a" * 70_000))
    assert "bytes" in str(shared.refused("choice", ["a" * 1000] * 70))


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "other.json#/a", "//127.0.0.1/x", "HTTP://a"])
def test_a_schema_points_nowhere_else(shared, target):
    assert "nothing is fetched" in str(shared.refused("json", {"properties": {"a": [{"$ref": target}]}, "type": "object"}))


@pytest.mark.parametrize("name, value", [
    ("regex", "(a+)+$"), ("regex", "a{1,100000}"), ("regex", "((a{1,1000}){1,1000}){1,1000}"), ("regex", "(.*a){60}"),
    ("json", {"$ref": "#"}), ("json", {"type": "object", "properties": {"next": {"$ref": "#"}}}),
    ("json", {"type": "array", "items": {"type": "string", "pattern": "(a+)+$"}}),
    ("json", {"enum": list(range(5000))}), ("grammar", "start: start start | \"a\""),
])  # fmt: skip
def test_hostile_grammars_are_honoured_or_refused_by_name(shared, name, value):
    try:
        shared.check(name, value)
    except InvalidInputError as error:
        assert error.field == f"structured_outputs.{name}"
    assert shared(render(shared.sandbox)) == "Hi"


@pytest.mark.parametrize("template", [
    "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context }}", "{{ messages.append(1) }}", "{{ ''['__class__'] }}", "{{ (messages|attr('__class__')).__name__ }}",
    "{{ raise_exception.__globals__ }}", "{{ namespace.__init__.__globals__ }}", "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{% set ns = namespace(__class__=1) %}", "{{ lipsum.__globals__['os'] }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os }}",
])  # fmt: skip
def test_templates_do_not_get_out(shared, template):
    try:
        text = shared(render(shared.sandbox, template=template))
    except InvalidInputError as error:
        assert error.field == "messages" and "/etc" not in str(error)
    else:
        assert text.strip() in ("", "<class 'list'>") or "Undefined" in text, text
    assert shared(render(shared.sandbox)) == "Hi"


@pytest.mark.parametrize("payload", ["{{ 7*7 }}", "{% for x in range(9) %}a{% endfor %}", "{{ ''.__class__ }}", "{# c #}", "${7*7}", "#{7*7}", "{%- raw -%}"])
def test_messages_are_text_and_no_template(shared, payload):
    assert shared(render(shared.sandbox, payload)) == payload


def test_the_templates_own_refusal_is_passed_on(shared):
    error = shared(refusal(render(shared.sandbox, template="{{ raise_exception('roles must alternate') }}")))
    assert "roles must alternate" in str(error) and error.field == "messages"
    error = shared(refusal(render(shared.sandbox, template="{{ messages[0].content + 1 }}")))
    assert "TypeError" in str(error)


def test_a_template_that_does_not_end_is_killed_and_nothing_else_is():
    async def job(sandbox):
        await render(sandbox)
        before = sandbox.worker_pids
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        endless = asyncio.create_task(refusal(render(sandbox, template=ENDLESS)))
        behind = asyncio.create_task(render(sandbox, "behind it"))
        error = await endless
        assert error.field == "messages" and "takes longer than 1.5 s" in str(error)
        assert await behind == "behind it"
        assert ticks > 10  # the loop went on
        ticking.cancel()
        assert sandbox.worker_pids != before
        with pytest.raises(ProcessLookupError):
            os.kill(before[0], 0)

    run(job, replace(LIMITS, template_seconds=1.5))


def test_ranges_beyond_reason_are_refused(shared):
    assert "OverflowError" in str(shared(refusal(render(shared.sandbox, template="{% for a in range(10**9) %}{% endfor %}"))))


def test_a_grammar_over_its_time_is_killed():
    async def job(sandbox):
        await render(sandbox)
        error = await refusal(sandbox.check_grammar(StructuredOutputsParams(regex="ab"), "response_format"))
        assert error.field == "response_format" and "compiling it takes longer" in str(error)
        assert await render(sandbox) == "Hi"

    run(job, replace(LIMITS, grammar_seconds=0.0))


def test_output_and_memory_are_bounded():
    async def job(sandbox):
        assert "gets too long" in str(await refusal(render(sandbox, template="{{ 'a' * 2000 }}")))
        assert "too much memory" in str(await refusal(render(sandbox, template="{{ ('a' * 10**9)[:2] }}")))
        assert await render(sandbox, "a" * 1000) == "a" * 1000

    run(job, replace(LIMITS, rendered_bytes=1000, memory_bytes=256 << 20))


def test_a_job_whose_worker_is_ended_from_outside_says_so_and_the_next_one_works():
    async def job(sandbox):
        await render(sandbox)
        task = asyncio.create_task(render(sandbox, template=ENDLESS))
        await asyncio.sleep(0.1)
        os.kill(sandbox.worker_pids[0], signal.SIGKILL)
        with pytest.raises(RequestFailedError, match="ended from outside: send the request again"):
            await task
        assert await render(sandbox) == "Hi"
        (idle,) = sandbox.worker_pids
        os.kill(idle, signal.SIGKILL)
        await asyncio.sleep(0.2)
        assert await render(sandbox) == "Hi"  # nobody's job was lost, so nobody hears of it

    run(job)


def test_a_client_that_goes_away_disturbs_nobody():
    async def job(sandbox):
        await render(sandbox)
        pids = sandbox.worker_pids
        task = asyncio.create_task(render(sandbox))
        await asyncio.sleep(0)
        task.cancel()
        assert await render(sandbox, "next") == "next" and sandbox.worker_pids == pids

    run(job)


def test_jobs_wait_in_order_and_not_without_end():
    async def job(sandbox):
        order = []
        tasks = [asyncio.create_task(render(sandbox, str(number))) for number in range(5)]
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: order.append(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="wait to be read already"):
            await render(sandbox)
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]

    run(job, replace(LIMITS, max_waiting=4))


def test_a_good_grammar_is_tried_once_and_few_are_remembered(shared, monkeypatch):
    asked = []
    run_job = shared.sandbox._run

    async def count(job, *rest):
        asked.append(job)
        return await run_job(job, *rest)

    monkeypatch.setattr(shared.sandbox, "_run", count)
    for _ in range(3):
        shared.check("regex", "once")
        assert "cannot be honoured" in str(shared.refused("regex", "(once"))
    assert len(asked) == 2


def test_many_distinct_schemas_leave_memory_flat():
    async def job(sandbox):
        def resident():
            return int(Path(f"/proc/{sandbox.worker_pids[0]}/statm").read_text().split()[1]) * resource.getpagesize()

        async def several(first, count):
            for number in range(first, first + count):
                await sandbox.check_grammar(StructuredOutputsParams(json={"type": "object", "properties": {f"a{number}": {"type": "string"}}}))

        await several(0, 100)
        before, (pid,) = resident(), sandbox.worker_pids
        await several(100, 1000)
        assert sandbox.worker_pids == [pid] and resident() - before < 20 << 20
        assert len(sandbox._checked) == 16

    run(job, replace(LIMITS, kept_checks=16))


def test_the_worker_sees_nothing_of_the_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    async def job(sandbox):
        await render(sandbox)
        process = Path(f"/proc/{sandbox.worker_pids[0]}")
        environment = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if entry)
        assert set(environment) <= {"PYTHONPATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "LC_ALL", "TZ"}
        assert os.readlink(process / "cwd") == "/"
        open_files = [os.readlink(link) for link in (process / "fd").iterdir()]
        assert all(name.startswith(("pipe:", "socket:")) or name == "/dev/null" for name in open_files), open_files
        assert "torch" not in (process / "maps").read_text()

    run(job)


def test_the_worker_dies_with_the_server():
    """In the middle of a job, too."""
    settings = {"tokenizer": None, "num_tokens": None, "end_token_ids": [], "grammar_text": grammar_text.__file__, "memory_bytes": 1 << 28, "rendered_bytes": 9}
    endless = {"kind": "template", "messages": [], "arguments": {"chat_template": ENDLESS}, "seconds": 100}
    script = f"""
import json, os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-P", {str(WORKER)!r}, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdin.write(json.dumps({settings!r}).encode() + b"\\n")
worker.stdin.flush()
worker.stdout.readline()
worker.stdin.write(json.dumps({endless!r}).encode() + b"\\n")
worker.stdin.flush()
print(worker.pid, flush=True)
worker.wait()
"""

    async def job():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env=environment)
        pid = int(await server.stdout.readline())
        await asyncio.sleep(0.2)
        os.kill(pid, 0)
        server.kill()
        await server.wait()
        for _ in range(500):
            if not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return
            await asyncio.sleep(0.01)
        pytest.fail("the worker lives on")

    asyncio.run(job())


def test_a_sandbox_that_does_not_run_says_so():
    async def job():
        with pytest.raises(UnavailableError, match="not running"):
            await render(Sandbox(None, 8, ()))
        sandbox = Sandbox(None, 8, (), replace(LIMITS, start_seconds=0.0))
        await sandbox.start()
        with pytest.raises(UnavailableError, match="cannot start"):
            await render(sandbox)
        await sandbox.stop()

    asyncio.run(job())


def test_without_a_tokenizer_grammars_are_refused():
    async def job():
        async with Sandbox(None, 8, (), LIMITS) as sandbox:
            assert "without a tokenizer" in str(await refusal(sandbox.check_grammar(StructuredOutputsParams(regex="a"))))

    asyncio.run(job())
