"""`/tokenize` and `/detokenize`."""

from __future__ import annotations


def test_there_and_back(server, offline):
    text = "the rest é<eos>"
    made = server.post("/tokenize", prompt=text, return_token_strs=True).raise_for_status().json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    assert made["max_model_len"] == offline.max_model_len
    assert server.post("/detokenize", tokens=made["tokens"]).raise_for_status().json() == {"prompt": text}


def test_a_conversation_counts_like_its_prompt(server):
    messages = [{"role": "user", "content": "rest"}]
    made = server.post("/tokenize", messages=messages).raise_for_status().json()
    assert made["token_strs"] is None
    reply = server.post("/v1/chat/completions", messages=messages, max_tokens=1).raise_for_status().json()
    assert reply["usage"]["prompt_tokens"] == made["count"]


def test_refusals(server):
    cases = [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/detokenize", {"tokens": [320]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**63]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
    ]
    for path, sent, param in cases:
        reply = server.post(path, **sent)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert server.client.post("/tokenize", json={"model": "other", "prompt": "a"}).status_code == 404
