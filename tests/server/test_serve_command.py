"""`forerun serve` as a process: its one line, its end by a signal; and what it refuses before it loads anything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx2
import pytest
from live_server import make_llm, serving

from forerun import AsyncLLM
from forerun.server.serving import is_loopback
from forerun.server.settings import ServerSettings

KEY = "a-key-of-ours"


@contextmanager
def running(saved_pair, *options):
    """(process, its URL, lines that it wrote so far)."""
    target, drafter = map(str, saved_pair)
    command = [sys.executable, "-m", "forerun", "serve", "--target", target, "--drafter", drafter, "--port", "0", "--served-model-name", "tiny", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    lines, ready = [], threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if " serves " in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(120) and process.poll() is None, lines
        yield process, re.search(r"http://\S+", next(line for line in lines if " serves " in line))[0], lines
    finally:
        process.kill()
        reader.join()
        process.stdout.close()
        process.stderr.close()
        process.wait()


def long_stream(url, headers):
    body = {"model": "tiny", "prompt": "the rest", "max_tokens": 480, "ignore_eos": True, "seed": 1, "stream": True, "speculation": {"enabled": False}}
    return httpx2.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60)


def test_a_signal_lets_running_requests_finish(saved_pair, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"me:{KEY}\n")
    keys.chmod(0o600)
    headers = {"authorization": f"Bearer {KEY}"}
    with running(saved_pair, "--api-key-file", str(keys), "--drain-seconds", "60") as (process, url, lines):
        line = next(line for line in lines if " serves " in line)
        assert "serves tiny (bitwise; drafters: " in line and "keys: 1" in line and KEY not in line
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        with long_stream(url, headers) as reply, httpx2.Client(base_url=url, headers=headers) as client:
            chunks = reply.iter_text()
            text = next(chunks)
            process.send_signal(signal.SIGTERM)
            while client.get("/ready").status_code == 200:
                pass
            assert client.get("/health").status_code == 200
            late = client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "unavailable")
            text += "".join(chunks)
        assert text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text
        assert process.wait(60) == 0
    assert "Traceback" not in "".join(lines), lines


def test_what_takes_longer_ends_with_an_error():
    with serving(AsyncLLM(make_llm()), ServerSettings(target="tiny", served_model_name="tiny"), drain_seconds=0.0) as live:
        with long_stream(live.url, {}) as reply:
            chunks = reply.iter_text()
            text = next(chunks)
            live.process.handle_exit(signal.SIGINT, None)
            text += "".join(chunks)
        assert '"code":"internal_error"' in text or '"code":"unavailable"' in text
        assert '"finish_reason":"length"' not in text and text.endswith("data: [DONE]\n\n")


REFUSED = {
    "remote": (["--host", "0.0.0.0"], "--allow-remote"),
    "remote without keys": (["--host", "0.0.0.0", "--allow-remote"], "api_key_file"),
    "remote by name": (["--host", "example.com"], "--allow-remote"),
    "no file": (["--api-key-file", "/nowhere/keys"], "api_key_file"),
    "port": (["--port", "70000"], "--port"),
    "length": (["-k", "many"], "num_draft_tokens"),
    "drain": (["--drain-seconds", "-1"], "--drain-seconds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(case, capsys, monkeypatch):
    from forerun.cli import app

    monkeypatch.setattr(AsyncLLM, "load", lambda *_, **__: pytest.fail("it was loaded"))
    options, named = REFUSED[case]
    with pytest.raises(SystemExit) as ended:
        app(["serve", *options])
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert named in complaint and complaint.count("\n") == 1


def test_a_port_that_is_taken(capsys, server):
    from forerun.cli import app

    with pytest.raises(SystemExit) as ended:
        app(["serve", "--port", server.url.rpartition(":")[2]])
    assert ended.value.code == 2 and "cannot listen there" in capsys.readouterr().err


@pytest.mark.parametrize("host, loopback", [("127.0.0.1", True), ("127.8.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("127.0.0.1.evil.example", False), ("10.0.0.1", False), ("", False)])
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


