"""`/v1/completions`: what comes over HTTP is what the offline engine gives, streamed or not, with speculation and without."""

from __future__ import annotations

import pytest
from events import joined, read_events

from forerun import SamplingParams

PROMPT = "the rest is in the rest of the story"
CASES = {
    "greedy": ({"temperature": 0.0, "seed": 1}, {"temperature": 0.0, "seed": 1}),
    "sampled": ({"seed": 7}, {"seed": 7}),
    "n": ({"seed": 3, "n": 2}, {"seed": 3, "n": 2}),
    "penalties": (
        {"seed": 5, "presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {"seed": 5, "presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    ),
    "logit_bias": ({"seed": 9, "logit_bias": {"101": 8.5, "116": -100}}, {"seed": 9, "logit_bias": {101: 8.5, 116: -100}}),
    "stop": ({"seed": 11, "stop": ["e", "\n"], "min_tokens": 3}, {"seed": 11, "stop": ["e", "\n"], "min_tokens": 3}),
    "regex": ({"seed": 2, "structured_outputs": {"regex": "[a-f]{4,12}é"}}, {"seed": 2, "structured_outputs": {"regex": "[a-f]{4,12}é"}}),
}


@pytest.mark.parametrize("speculation", [{"enabled": False}, {"num_draft_tokens": 4}], ids=["off", "on"])
@pytest.mark.parametrize("case", CASES)
def test_equals_offline(server, offline, case, speculation):
    sent, params = CASES[case]
    expected = offline.generate(PROMPT, SamplingParams(max_tokens=24, num_draft_tokens=0, **params))[0]
    asked = {"prompt": PROMPT, "max_tokens": 24, "speculation": speculation | {"tokens": True}, **sent}
    whole = server.post("/v1/completions", **asked).raise_for_status().json()
    events = read_events(server.post("/v1/completions", **asked, stream=True))
    for index, output in enumerate(expected.outputs):
        choice = whole["choices"][index]
        streamed = joined(events, index)
        assert [token["token_id"] for token in choice["tokens"]] == [token["token_id"] for token in streamed.tokens] == output.token_ids
        assert choice["text"] == streamed.text == output.text
        assert choice["finish_reason"] == streamed.finish_reason == output.finish_reason
        assert choice["seed"] == streamed.seed == output.seed
    assert whole["usage"]["completion_tokens"] == sum(len(output.token_ids) for output in expected.outputs)
