"""Requests as the server would describe them, and engines that are what a test says."""

from __future__ import annotations

from dataclasses import replace

from forerun import SamplingParams
from forerun.server.served_request import ServedRequest
from forerun.types import CompletionOutput, EngineSnapshot, RequestTimes, SpeculationStats


class Engine:
    """A snapshot that tests change."""

    def __init__(self, **figures):
        self.snapshot = EngineSnapshot(**figures)

    def __call__(self):
        return self.snapshot

    def set(self, **figures):
        self.snapshot = replace(self.snapshot, **figures)


def completion(num_tokens=5, finish_reason="stop", arrived=100.0, **stats):
    stats = {"num_target_passes": 2, "num_draft_tokens": 4, "num_accepted_tokens": 3, "num_output_tokens": num_tokens} | stats
    times = RequestTimes(arrived=arrived, scheduled=arrived + 0.2, first_token=arrived + 0.5, finished=arrived + 2.5, num_cached_tokens=6, num_preemptions=1)
    return CompletionOutput("PRIVATE OUTPUT", list(range(num_tokens)), finish_reason, 7, SpeculationStats(**stats), times=times)


def served(**changed):
    """A chat of one completion that went well."""
    fields = {
        "request_id": "req-1", "method": "POST", "route": "/v1/chat/completions", "tenant": "alice", "arrived": 100.0, "finished": 102.6, "status": 200,
        "response_id": "chatcmpl-1", "operation": "chat", "is_streaming": True, "params": SamplingParams(max_tokens=16, temperature=0.5, seed=3),
        "body": "PRIVATE PROMPT", "num_prompt_tokens": 11, "completions": [completion()],
    }  # fmt: skip
    fields |= changed
    fields.setdefault("num_choices", len(fields["completions"]))
    fields.setdefault("num_output_tokens", sum(len(each.token_ids) for each in fields["completions"]))
    fields.setdefault("finish_reasons", [each.finish_reason for each in fields["completions"]])
    return ServedRequest(**fields)
