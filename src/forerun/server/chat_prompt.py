"""Conversations and texts to the token ids of a prompt.

The template is the model folder's or the operator's, never the request's. A client's words stay words: see `control_tokens`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from forerun.server.control_tokens import ControlTokens, Marks, private_characters
from forerun.server.sandbox import Sandbox
from forerun.server.sandbox.schema_check import check_nesting
from forerun.types import InvalidInputError, ModelLoadError

ROLES = ("system", "developer", "user", "assistant", "tool")
# a model's own turn may hold the marks of its thinking and its calls, which templates look for; the special tokens stay text there, too
OWN_WORDS = ("content", "reasoning_content")
TEMPLATE_ARGUMENTS: dict[str, tuple[object, ...]] = {
    "enable_thinking": (True, False),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high"),
}
MOST_NESTING = 64
MOST_TEMPLATE_BYTES = 1 << 20


def load_chat_template(path: str | Path) -> str:
    """The operator's own template. Raises ModelLoadError for a file that cannot be one."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_TEMPLATE_BYTES + 1)
        if len(content) <= MOST_TEMPLATE_BYTES:
            return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"the chat template {str(path)!r} cannot be read ({error}): give a file with a Jinja template") from error
    raise ModelLoadError(f"the chat template {str(path)!r} is larger than {MOST_TEMPLATE_BYTES} bytes: give a file with a Jinja template")


class ChatPrompt:
    """Prompts for one tokenizer. `template` is the operator's; None is the model's own, where it has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, sandbox: Sandbox, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._sandbox = sandbox
        self._template = template

    @cached_property
    def _controls(self) -> ControlTokens:
        return ControlTokens(self._given_tokenizer("prompt"))

    def template(self, has_tools: bool = False) -> str | None:
        """The template's text; None where there is none. Some models have another one for conversations with tools."""
        if self._template is not None or self._tokenizer is None or not self._tokenizer.chat_template:
            return self._template
        own: str | dict[str, str] = self._tokenizer.chat_template
        if isinstance(own, str):
            return own
        return (own.get("tool_use") if has_tools else None) or own.get("default")

    async def encode_text(self, prompt: str, field: str = "prompt") -> list[int]:
        """The token ids of a text. Raises InvalidInputError for one that is empty or no text."""
        self._given_tokenizer(field)
        if not prompt:
            raise InvalidInputError(field, prompt, "give some text, or token ids")
        _check_text(prompt, field)
        return await asyncio.to_thread(self._controls.encode, prompt)

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of a conversation. Raises InvalidInputError for what the template cannot write."""
        tokenizer = self._given_tokenizer("messages")
        template = self.template(bool(tools))
        if template is None:
            raise InvalidInputError("messages", "chat", "the model has no chat template: use /v1/completions, or start the server with --chat-template FILE")
        if continue_final_message and add_generation_prompt:
            raise InvalidInputError("continue_final_message", True, "give add_generation_prompt false with it: the answer has begun already")
        arguments = _checked_arguments(template_arguments or {}, template)
        check_nesting(list(messages), "messages", MOST_NESTING)
        check_nesting(list(tools or ()), "tools", MOST_NESTING)
        conversation = [_plain_message(message, f"messages[{index}]", template) for index, message in enumerate(messages)]
        if not conversation:
            raise InvalidInputError("messages", [], "give at least one message")
        described: list[Any] | None = [dict(tool) for tool in tools] if tools else None
        marks, conversation, described = await asyncio.to_thread(self._protected, conversation, described, template)
        rendered = await self._sandbox.render(
            conversation,
            {
                **tokenizer.special_tokens_map, **arguments, "tools": described, "chat_template": template,
                "add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message,
            },
        )  # fmt: skip
        # templates of most models write their own BOS; those that do not get the tokenizer's
        bos = tokenizer.bos_token or ""
        return await asyncio.to_thread(self._controls.encode_marked, rendered, marks, not (bos and rendered.startswith(bos)))

    def _given_tokenizer(self, field: str) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            raise InvalidInputError(field, "text", "the model came without a tokenizer: give token ids to /v1/completions")
        return self._tokenizer

    def _protected(
        self, conversation: list[dict[str, Any]], tools: list[Any] | None, template: str
    ) -> tuple[Marks | None, list[dict[str, Any]], list[Any] | None]:
        """With marks where a client's words hold a control token's text; as it is, and no marks, where none do."""
        for text in _texts(conversation):
            _check_text(text, "messages")
        for text in _texts(tools):
            _check_text(text, "tools")
        words = (word for message in conversation for word in _words(message))
        if not any(self._controls.held_by(*word) for word in words) and not any(map(self._controls.held_by, _texts(tools))):
            return None, conversation, tools
        marks = Marks(private_characters(iter([template, *_texts(conversation), *_texts(tools)])))
        return marks, [self._marked_message(message, marks) for message in conversation], self._marked(tools, marks)

    def _marked_message(self, message: dict[str, Any], marks: Marks) -> dict[str, Any]:
        own = OWN_WORDS if message["role"] == "assistant" else ()
        return {key: self._marked(value, marks, only_special=key in own) for key, value in message.items()}

    def _marked(self, value: Any, marks: Marks, only_special: bool = False) -> Any:
        if isinstance(value, str):
            return self._controls.marked(value, marks, only_special)
        if isinstance(value, dict):
            return {self._marked(key, marks): self._marked(each, marks) for key, each in value.items()}
        return [self._marked(each, marks) for each in value] if isinstance(value, (list, tuple)) else value


def _words(message: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """A message's texts, each with whether only special tokens matter in it."""
    own = OWN_WORDS if message["role"] == "assistant" else ()
    for key, value in message.items():
        yield from ((text, key in own) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, its keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _check_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(field, text, "holds one half of a character (a lone surrogate): send whole characters") from None


def _checked_arguments(given: Mapping[str, Any], template: str) -> dict[str, Any]:
    for name, value in given.items():
        if name not in TEMPLATE_ARGUMENTS:
            raise InvalidInputError(f"chat_template_kwargs.{name}", value, f"is not for a request to set: give {' or '.join(TEMPLATE_ARGUMENTS)}")
        valid = TEMPLATE_ARGUMENTS[name]
        if not any(value is each or (isinstance(value, str) and value == each) for each in valid):
            raise InvalidInputError(f"chat_template_kwargs.{name}", value, f"give one of {', '.join(map(repr, valid))}")
        if name not in template:
            raise InvalidInputError(name, value, "the model's chat template does not know it: leave it out")
    return dict(given)


def _plain_message(message: Mapping[str, Any], field: str, template: str) -> dict[str, Any]:
    """As templates know it: no empty fields, content as one text, arguments of calls as objects."""
    plain = {key: value for key, value in message.items() if value is not None}
    role = plain.get("role")
    if role not in ROLES:
        raise InvalidInputError(f"{field}.role", role, f"give one of {', '.join(ROLES)}")
    if role == "developer" and "developer" not in template:
        plain["role"] = "system"
    if "content" in plain:
        plain["content"] = _one_text(plain["content"], f"{field}.content")
    elif not plain.get("tool_calls"):
        raise InvalidInputError(f"{field}.content", None, "give a text")
    if "tool_calls" in plain:
        calls = enumerate(plain["tool_calls"])
        plain["tool_calls"] = [_plain_call(call, f"{field}.tool_calls[{index}].function") for index, call in calls]
    return plain


def _one_text(content: Any, field: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content if isinstance(content, (list, tuple)) else [content]):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidInputError(f"{field}[{index}]", part, 'give a text, or parts {"type": "text", "text": ...}: nothing else is read or fetched')
        texts.append(part["text"])
    return "\n".join(texts)


def _plain_call(call: Any, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidInputError(field, function, 'give {"name": ..., "arguments": ...}')
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise InvalidInputError(f"{field}.arguments", arguments, "give an object as JSON") from None
        check_nesting(arguments, f"{field}.arguments", MOST_NESTING)
    if not isinstance(arguments, Mapping):
        raise InvalidInputError(f"{field}.arguments", arguments, "give an object as JSON")
    return {**call, "function": {**function, "arguments": dict(arguments)}}
