"""Streams as clients see them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx2


def read_events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The chunks of a whole stream, which must end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block[len("data: ") :]) for block in blocks[:-2]]


@dataclass(slots=True)
class Joined:
    """One choice of a stream."""

    text: str = ""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    seed: int | None = None


def joined(events: list[dict[str, Any]], index: int) -> Joined:
    made = Joined()
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        assert made.finish_reason is None, "nothing comes behind a finish reason"
        made.text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        made.tokens += choice.get("tokens", [])
        made.finish_reason = choice["finish_reason"]
        made.seed = choice.get("seed")
    return made
