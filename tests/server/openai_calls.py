"""What people do with the official `openai` client, as one list of calls. Run as a program, with any release of it:

    python openai_calls.py URL KEY MODEL

prints a line of JSON: the client's version, and of each call None or what went wrong. A server for this needs the key, and a chat template.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

CALLS: dict[str, Callable[[Any], None]] = {}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "to be or not to be"}]
class Answer(BaseModel):
    """Finite, so that a model which knows nothing can finish it."""

    sure: bool
    colour: Literal["red", "blue"]


@dataclass
class Context:
    """Clients of one server."""

    url: str
    key: str
    model: str

    def client(self, **more: Any) -> Any:
        import openai

        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": self.key, "max_retries": 0, "timeout": 60.0} | more)

    def async_client(self) -> Any:
        import openai

        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60.0)


def call(function: Callable[[Any], None]) -> Callable[[Any], None]:
    CALLS[function.__name__] = function
    return function


def refused(kind: str, action: Callable[[], Any]) -> Any:
    """The error of that name that the action ends with."""
    import openai

    try:
        found = action()
    except getattr(openai, kind) as error:
        return error
    raise AssertionError(f"no {kind}, but {found!r}")


@call
def models(to: Context) -> None:
    with to.client() as client:
        listed = [model.id for model in client.models.list()]
        assert to.model in listed
        one = client.models.retrieve(to.model)
        assert one.id == to.model and one.object == "model"
        assert refused("NotFoundError", lambda: client.models.retrieve("nobody")).status_code == 404


@call
def completion(to: Context) -> None:
    with to.client() as client:
        found = client.completions.create(model=to.model, prompt="to be", max_tokens=8, temperature=0)
    assert found.object == "text_completion" and found.id.startswith("cmpl")
    assert found.choices[0].finish_reason in ("length", "stop") and found.choices[0].text
    assert found.usage.completion_tokens <= 8 and found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


@call
def completion_of_several_prompts_and_token_ids(to: Context) -> None:
    with to.client() as client:
        both = client.completions.create(model=to.model, prompt=["to be", "or not"], max_tokens=4, temperature=0)
        assert [choice.index for choice in both.choices] == [0, 1]
        alone = client.completions.create(model=to.model, prompt="or not", max_tokens=4, temperature=0)
        assert both.choices[1].text == alone.choices[0].text
        ids = client.completions.create(model=to.model, prompt=[100, 101, 102], max_tokens=4, temperature=0)
        assert ids.usage.prompt_tokens == 3


@call
def seed_n_and_logprobs(to: Context) -> None:
    with to.client() as client:
        def ask(**more: Any) -> Any:
            return client.completions.create(model=to.model, prompt="to be", max_tokens=12, temperature=1, **{"seed": 7} | more)

        one, again, other = ask(), ask(), ask(seed=8)
        assert one.choices[0].text == again.choices[0].text != other.choices[0].text
        several = ask(n=3)
        assert [choice.index for choice in several.choices] == [0, 1, 2] and len({choice.text for choice in several.choices}) > 1
        logprobs = ask(logprobs=2).choices[0].logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) > 0
        assert all(value <= 0 for value in logprobs.token_logprobs) and all(len(each) >= 2 for each in logprobs.top_logprobs)


@call
def stop(to: Context) -> None:
    with to.client() as client:
        whole = client.completions.create(model=to.model, prompt="to be", max_tokens=24, temperature=0, extra_body={"ignore_eos": True}).choices[0].text
        wanted = whole[len(whole) // 2 : len(whole) // 2 + 2]
        cut = client.completions.create(model=to.model, prompt="to be", max_tokens=24, temperature=0, stop=[wanted], extra_body={"ignore_eos": True}).choices[0]
        assert cut.finish_reason == "stop" and cut.text == whole[: whole.index(wanted)]


@call
def completion_streamed(to: Context) -> None:
    with to.client() as client:
        asked = {"model": to.model, "prompt": "to be", "max_tokens": 16, "temperature": 1, "seed": 3}
        whole = client.completions.create(**asked)
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


@call
def chat(to: Context) -> None:
    with to.client() as client:
        found = client.chat.completions.create(model=to.model, messages=MESSAGES, max_completion_tokens=8, temperature=0, user="somebody")
    assert found.object == "chat.completion" and found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content and not found.choices[0].message.tool_calls
    assert found.usage.completion_tokens <= 8


@call
def chat_streamed(to: Context) -> None:
    with to.client() as client:
        asked = {"model": to.model, "messages": MESSAGES, "max_completion_tokens": 16, "temperature": 1, "seed": 3, "n": 2}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = {0: "", 1: ""}
    ends = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert [texts[choice.index] for choice in whole.choices] == [choice.message.content for choice in whole.choices]
    assert [ends[choice.index] for choice in whole.choices] == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].choices[0].delta.role == "assistant"


@call
def chat_stream_helper(to: Context) -> None:
    with to.client() as client, client.chat.completions.stream(model=to.model, messages=MESSAGES, max_completion_tokens=12, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content


@call
def chat_logprobs(to: Context) -> None:
    with to.client() as client:
        found = client.chat.completions.create(model=to.model, messages=MESSAGES, max_completion_tokens=6, temperature=0, logprobs=True, top_logprobs=3)
    content = found.choices[0].logprobs.content
    assert 0 < len(content) <= 6
    for each in content:
        assert each.logprob <= 0 and len(each.top_logprobs) == 3 and isinstance(each.bytes, list)
        assert each.top_logprobs[0].logprob >= each.logprob - 1e-4


@call
def structured_parse(to: Context) -> None:
    with to.client() as client:
        found = client.chat.completions.parse(model=to.model, messages=MESSAGES, response_format=Answer, max_completion_tokens=120, temperature=0)
        assert isinstance(found.choices[0].message.parsed, Answer) and found.choices[0].finish_reason == "stop"
        with client.chat.completions.stream(model=to.model, messages=MESSAGES, response_format=Answer, max_completion_tokens=120, temperature=0) as stream:
            for _ in stream:
                pass
            assert stream.get_final_completion().choices[0].message.parsed == found.choices[0].message.parsed


@call
def json_schema(to: Context) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": False}
    with to.client() as client:
        found = client.chat.completions.create(
            model=to.model, messages=MESSAGES, max_completion_tokens=60, temperature=1, seed=1,
            response_format={"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}},
        )  # fmt: skip
    assert set(json.loads(found.choices[0].message.content)) == {"yes"}


@call
def speculation_fields(to: Context) -> None:
    with to.client() as client:
        asked = {"model": to.model, "prompt": "to be or not to be or not", "max_tokens": 16, "temperature": 0}
        with_it = client.completions.create(**asked, extra_body={"speculation": {"num_draft_tokens": 4, "report": True, "tokens": True}})
        without = client.completions.create(**asked, extra_body={"speculation": {"enabled": False, "tokens": True}})
    report = with_it.model_extra["metrics"]["speculative_decoding"]
    assert {"mean_acceptance_length", "draft_acceptance_rate", "num_draft_tokens"} <= set(report)
    first, second = (found.choices[0].model_extra["tokens"] for found in (with_it, without))
    assert [token["token_id"] for token in first] == [token["token_id"] for token in second]
    assert {token["kind"] for token in second} == {"plain"} and "".join(token["text"] for token in first) == with_it.choices[0].text


@call
def asynchronous(to: Context) -> None:
    async def run() -> None:
        async with to.async_client() as client:
            async def one(number: int) -> str:
                found = await client.completions.create(model=to.model, prompt="to be", max_tokens=8, temperature=1, seed=number)
                return str(found.choices[0].text)

            together = await asyncio.gather(*(one(number) for number in range(6)))
            assert list(together) == [await one(number) for number in range(6)]
            stream = await client.chat.completions.create(model=to.model, messages=MESSAGES, max_completion_tokens=8, temperature=0, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            whole = await client.chat.completions.create(model=to.model, messages=MESSAGES, max_completion_tokens=8, temperature=0)
            assert text == whole.choices[0].message.content

    asyncio.run(run())


@call
def responses(to: Context) -> None:
    with to.client() as client:
        found = client.responses.create(model=to.model, input="to be", instructions="Be brief.", max_output_tokens=16, temperature=0, store=False)
        assert found.object == "response" and found.status in ("completed", "incomplete") and found.output_text
        assert found.usage.output_tokens <= 16
        listed = client.responses.create(model=to.model, input=[{"role": "user", "content": [{"type": "input_text", "text": "to be"}]}], instructions="Be brief.", max_output_tokens=16, temperature=0, store=False)
        assert listed.output_text == found.output_text


@call
def responses_streamed(to: Context) -> None:
    with to.client() as client:
        asked = {"model": to.model, "input": "to be", "max_output_tokens": 16, "temperature": 0, "store": False}
        whole = client.responses.create(**asked)
        events = list(client.responses.create(**asked, stream=True))
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
        for kind in ("response.in_progress", "response.output_item.added", "response.content_part.added", "response.output_text.done", "response.output_item.done"):
            assert kinds.count(kind) == 1, (kind, kinds)
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
        assert events[-1].response.output_text == whole.output_text
        numbers = [event.sequence_number for event in events]
        assert numbers == sorted(set(numbers))
        # the helper wants a response that was completed, not cut at its limit
        finite = {"format": {"type": "json_schema", "name": "word", "schema": {"type": "string", "enum": ["be", "not"]}}}
        with client.responses.stream(model=to.model, input="to be", temperature=0, text=finite) as stream:
            deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert stream.get_final_response().output_text == deltas and json.loads(deltas) in ("be", "not")


@call
def responses_parse(to: Context) -> None:
    with to.client() as client:
        found = client.responses.parse(model=to.model, input="to be", text_format=Answer, max_output_tokens=200, temperature=1, extra_body={"seed": 1}, store=False)
    assert isinstance(found.output_parsed, Answer)


@call
def errors(to: Context) -> None:
    with to.client() as client, to.client(api_key="not-a-key-of-this-server") as stranger:
        def ask(client: Any = client, **more: Any) -> Any:
            return client.completions.create(**{"model": to.model, "prompt": "to be", "max_tokens": 4} | more)

        unknown = refused("AuthenticationError", lambda: ask(stranger))
        assert unknown.status_code == 401 and unknown.code == "invalid_api_key"
        for name, value in (("temperature", -1), ("n", 0), ("max_tokens", 10**6), ("top_p", 2), ("logprobs", 10**6), ("stop", [""])):
            wrong = refused("BadRequestError", lambda name=name, value=value: ask(**{name: value}))
            assert wrong.status_code == 400 and wrong.param and wrong.param.split(".")[0] == name and wrong.type == "invalid_request_error", (name, wrong.param)
        wibble = refused("BadRequestError", lambda: ask(extra_body={"wibble": 1}))
        assert wibble.param == "wibble"
        nobody = refused("NotFoundError", lambda: ask(model="nobody"))
        assert nobody.status_code == 404 and nobody.code == "model_not_found" and nobody.param == "model"
        streamed = refused("BadRequestError", lambda: ask(stream=True, temperature=-1))
        assert streamed.param == "temperature"


@call
def timeouts_and_streams_left_early(to: Context) -> None:
    with to.client() as client:
        refused("APITimeoutError", lambda: client.with_options(timeout=1e-4).completions.create(model=to.model, prompt="to be", max_tokens=400, extra_body={"ignore_eos": True}))
        with client.completions.create(model=to.model, prompt="to be", max_tokens=400, temperature=0, stream=True, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        assert client.completions.create(model=to.model, prompt="to be", max_tokens=4, temperature=0).choices


def run(to: Context, name: str) -> str | None:
    try:
        CALLS[name](to)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    import openai

    to = Context(*sys.argv[1:4])
    sys.stdout.write(json.dumps({"version": openai.__version__, "calls": {name: run(to, name) for name in CALLS}}))


if __name__ == "__main__":
    # this module, and not a second one of the same name, takes in the calls about tools
    sys.modules["openai_calls"] = sys.modules["__main__"]
    import openai_tool_calls  # noqa: F401

    main()
