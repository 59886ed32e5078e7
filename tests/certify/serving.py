"""A double behind HTTP: the few fields of an OpenAI-compatible server that certify reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from forerun.certify.doubles import Double
from forerun.certify.subject import Setting

LETTERS = "abcdefgh"
SECRET = "sk-test-0123456789"


def answer(double: Double, asked: dict, num_draft_tokens: int, shape: str, refuses_logprobs: bool) -> tuple[int, dict]:
    """Status and body. `shape` "lists" is vLLM's and SGLang's form of logprobs, "objects" llama.cpp's."""
    if refuses_logprobs and "logprobs" in asked:
        return 400, {"error": {"message": "logprobs are not supported while speculating"}}
    setting = Setting(asked["temperature"], asked["max_tokens"], num_draft_tokens)
    [found] = double.complete([asked["prompt"]], [asked["seed"]], setting)
    choice = {"text": "".join(LETTERS[each] for each in found), "finish_reason": "length"}
    if "logprobs" in asked:
        laws = double.laws(asked["prompt"], found, 1.0)[:-1]
        best = np.argsort(-laws, axis=1)[:, : asked["logprobs"]]
        rows = [{LETTERS[i]: float(np.log(law[i])) for i in order} for law, order in zip(laws, best.tolist(), strict=True)]
        if shape == "lists":
            choice["logprobs"] = {"tokens": list(choice["text"]), "top_logprobs": rows}
        else:
            content = [
                {"token": token, "top_logprobs": [{"token": other, "logprob": value} for other, value in row.items()]}
                for token, row in zip(choice["text"], rows, strict=True)
            ]
            choice["logprobs"] = {"content": content}
    return 200, {"choices": [choice]}


@contextmanager
def served(
    double: Double, num_draft_tokens: int, *, shape: str = "lists", refuses_logprobs: bool = False, moved: str | None = None
) -> Iterator[str]:
    """The URL of a server on this machine, for as long as the block runs. `moved` answers with a redirect to there."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if moved is not None:
                status, body = 307, {}
            elif self.headers.get("Authorization") != f"Bearer {SECRET}":
                status, body = 401, {"error": {"message": "give a key"}}
            else:
                status, body = answer(double, asked, num_draft_tokens, shape, refuses_logprobs)
            content = json.dumps(body).encode()
            self.send_response(status)
            if moved is not None:
                self.send_header("Location", moved)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
