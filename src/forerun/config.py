"""Frozen settings: what a request asks for, and how an engine is built. Checked once, refused loudly."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from forerun.types import InvalidInputError

NumDraftTokens = int | Literal["auto"]
Acceptance = Literal["match", "block"]

GREEDY_BELOW = 1e-5  # temperatures under this are argmax, as in vLLM

DTYPES = {
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float32": torch.float32, "fp32": torch.float32,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip

_LANGUAGE_KINDS: dict[str, tuple[type, ...]] = {"json": (str, dict), "regex": (str,), "choice": (list, tuple), "grammar": (str,), "json_object": (bool,)}


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """A language that the output must be a sentence of: exactly one of these. Names and meanings are vLLM's.

    `json`: a JSON schema, as text or a dict. `regex`: the whole output matches it (Rust's syntax: no look-around, no backreferences).
    `choice`: one of these texts. `grammar`: a Lark grammar, or an EBNF one in GBNF's notation. `json_object`: any JSON object.

    Raises InvalidInputError for none or several of them; what the fields say is read when a request is added.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        given = [each.name for each in fields(self) if getattr(self, each.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(each.name for each in fields(self))
            raise InvalidInputError("structured_outputs", given, f"give exactly one of {names}")
        name, value = self.chosen
        kinds = _LANGUAGE_KINDS[name]
        if not isinstance(value, kinds):
            raise InvalidInputError(f"structured_outputs.{name}", value, f"give {' or '.join(kind.__name__ for kind in kinds)}")
        if self.choice is not None:
            if not self.choice or not all(isinstance(text, str) for text in self.choice):
                raise InvalidInputError("structured_outputs.choice", value, "give at least one text")
            object.__setattr__(self, "choice", tuple(self.choice))

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> StructuredOutputsParams:
        """The same from a JSON object. Raises InvalidInputError for a name that is no field."""
        known = [each.name for each in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InvalidInputError("structured_outputs", unknown[0], f"is no field of it: give one of {', '.join(known)}")
        return cls(**given)

    @property
    def chosen(self) -> tuple[str, Any]:
        """The field that was given, and its value."""
        return next((each.name, value) for each in fields(self) if (value := getattr(self, each.name)) not in (None, False))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. Names and meanings are vLLM's; each works the same with speculation on and off.

    `temperature` 0 is greedy. `top_k` -1 and `top_p` 1.0 are off. Penalties look at the output (repetition: at the
    prompt too). `logit_bias` maps token ids to additions. `stop` strings end the text before themselves,
    `stop_token_ids` and the model's EOS (unless `ignore_eos`) end it with themselves, neither before `min_tokens`.
    `seed` None draws one, and the output reports it. `logprobs` asks for that many most likely tokens a position, `prompt_logprobs`
    for the same of the prompt, both of the target before any processing. `bad_words` are not written in the tokens that they have at a
    text's start or behind a space (one cut into other tokens gets through, as in vLLM).
    `structured_outputs` (also as a dict of its fields) holds the output to a language; the end comes where the language allows it.
    `logits_processors` are transformers': called with `input_ids` [1, num_tokens] and `scores` [1, vocab_size] of one row, the text's rows
    in order; each continuation has copies of its own, so they may keep state (not in a function's closure, which no copy separates).
    `num_beams` is there to say no: beams are not samples of the target's law.
    `num_draft_tokens` is this request's draft length: a number, "auto" (adapts, down to none), 0 (plain decoding),
    None (the engine's). `acceptance` "match" gives the same tokens with any draft or none; "block" accepts more of a drawn draft at
    temperatures over 0, and gives the same law of the text but not the same tokens.
    `drafters` names those of the engine's drafters that may guess for this request; None is all of them.
    `cache_salt` sets a tenant apart: what drafters remember of requests is found by requests with the same salt only.

    Raises InvalidInputError naming the field, the value and the remedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: str | tuple[str, ...] | list[str] = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    max_tokens: int = 128
    min_tokens: int = 0
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    num_draft_tokens: NumDraftTokens | None = None
    acceptance: Acceptance = "match"
    bad_words: tuple[str, ...] | list[str] = ()
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    logits_processors: tuple[Callable[..., torch.Tensor], ...] | list[Callable[..., torch.Tensor]] = ()
    num_beams: int = 1
    cache_salt: str | None = None
    drafters: tuple[str, ...] | list[str] | None = None

    def __post_init__(self) -> None:
        self._normalise("stop", lambda value: (value,) if isinstance(value, str) else tuple(value or ()), "give strings that are not empty")
        self._normalise("stop_token_ids", lambda value: tuple(map(operator.index, value or ())), "give token ids")
        self._normalise("logit_bias", lambda value: {int(i): float(bias) for i, bias in (value or {}).items()}, "give token ids with numbers")
        self._normalise("bad_words", lambda value: (value,) if isinstance(value, str) else tuple(value or ()), "give texts that are not empty")
        self._normalise("drafters", lambda value: value if value is None else (value,) if isinstance(value, str) else tuple(value), "give names of drafters, or None")
        self._normalise("logits_processors", lambda value: tuple(value or ()), "give a list of callables (input_ids, scores) -> scores")
        self._check_number("temperature", 0.0, math.inf, "give a number of 0 or more; 0 is greedy")
        self._check_number("top_p", 0.0, 1.0, "give a share over 0 and up to 1; 1 is off", open_low=True)
        self._check_number("min_p", 0.0, 1.0, "give a share from 0 to 1; 0 is off")
        self._check_number("presence_penalty", -2.0, 2.0, "give a number from -2 to 2; 0 is off")
        self._check_number("frequency_penalty", -2.0, 2.0, "give a number from -2 to 2; 0 is off")
        self._check_number("repetition_penalty", 0.0, math.inf, "give a number over 0; 1 is off", open_low=True)
        self._check_integer("max_tokens", 1)
        self._check_integer("min_tokens", 0)
        self._check_integer("n", 1)
        if self.top_k != -1:
            self._check_integer("top_k", 1, "give a whole number of 1 or more, or -1 for off")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._check_integer(name, 0)
        if self.seed is not None:
            self._check_integer("seed", 0)
        if self.min_tokens > self.max_tokens:
            raise InvalidInputError("min_tokens", self.min_tokens, f"give at most max_tokens ({self.max_tokens})")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise InvalidInputError("stop", self.stop, "give strings that are not empty")
        self._check_constraints()
        if any(not math.isfinite(bias) for bias in self.logit_bias.values()):
            raise InvalidInputError("logit_bias", self.logit_bias, "give finite additions")
        if self.acceptance not in get_args(Acceptance):
            raise InvalidInputError("acceptance", self.acceptance, 'give "match" or "block"; rules that change the law of the text are not offered')
        if self.cache_salt is not None and (not isinstance(self.cache_salt, str) or not self.cache_salt):
            raise InvalidInputError("cache_salt", self.cache_salt, "give a text that is not empty, or None")
        if self.num_draft_tokens is not None:
            check_num_draft_tokens(self.num_draft_tokens)

    def _check_constraints(self) -> None:
        if any(not isinstance(word, str) or not word for word in self.bad_words):
            raise InvalidInputError("bad_words", self.bad_words, "give texts that are not empty")
        if any(not callable(processor) for processor in self.logits_processors):
            raise InvalidInputError("logits_processors", self.logits_processors, "give callables (input_ids, scores) -> scores")
        if isinstance(self.structured_outputs, dict):
            object.__setattr__(self, "structured_outputs", StructuredOutputsParams.from_dict(self.structured_outputs))
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise InvalidInputError("structured_outputs", self.structured_outputs, "give a StructuredOutputsParams(...)")
        if self.structured_outputs is not None and self.ignore_eos:
            raise InvalidInputError("ignore_eos", True, "leave it out: with structured_outputs the end token ends a complete output")
        if self.num_beams != 1:
            raise InvalidInputError("num_beams", self.num_beams, "beams are not samples of the target's law: ask for several continuations with n=...")

    def _normalise(self, name: str, convert: Callable[[Any], Any], remedy: str) -> None:
        try:
            object.__setattr__(self, name, convert(getattr(self, name)))
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(name, getattr(self, name), remedy) from error

    def _check_number(self, name: str, low: float, high: float, remedy: str, open_low: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidInputError(name, value, remedy)
        if not low <= value <= high or (open_low and value == low):
            raise InvalidInputError(name, value, remedy)

    def _check_integer(self, name: str, low: int, remedy: str = "") -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise InvalidInputError(name, value, remedy or f"give a whole number of {low} or more")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def is_plain_argmax(self) -> bool:
        """Greedy and nothing touches the logits: the row's argmax is the token."""
        return self.is_greedy and not (self.has_penalties or self.logit_bias or self.min_tokens or self.carries_state)

    @property
    def carries_state(self) -> bool:
        """What is allowed next depends on more than counts of tokens: the request has a `PathState`."""
        return bool(self.bad_words or self.logits_processors) or self.structured_outputs is not None


def check_num_draft_tokens(value: object) -> None:
    valid = value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 64)
    if not valid:
        raise InvalidInputError("num_draft_tokens", value, 'give "auto", 0 for plain decoding, or a number up to 64')


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype; None means the checkpoint's own. Raises InvalidInputError for any other name."""
    if dtype is None or dtype == "auto":
        return None
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype))
    if found not in DTYPES.values():
        raise InvalidInputError("dtype", dtype, f"give one of {', '.join(DTYPES)}")
    return found


def resolve_device(device: str | torch.device | None, field: str = "device") -> torch.device:
    """The torch device; None is the CPU. Raises InvalidInputError that names `field` for one that this machine lacks."""
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InvalidInputError(field, device, f'this machine cannot run it ({reason}): give "cpu" or leave it out') from error
    return found


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs. `max_model_len` None is the model's own context.

    `kv_cache_memory` bounds the keys and values of all requests: bytes, or a share of the memory that is free at load; None is enough for
    `max_num_seqs` texts of `max_model_len` twice over, within a third of it. `enable_prefix_caching` keeps those of past requests for others that begin alike;
    None does so where the kernels are bitwise. A step prefills at most `max_num_batched_tokens` tokens.
    """

    max_num_seqs: int = 16
    max_model_len: int | None = None
    num_draft_tokens: NumDraftTokens = "auto"
    max_num_draft_tokens: int = 16  # the most that "auto" drafts one after the other
    kv_cache_memory: int | float | None = None
    enable_prefix_caching: bool | None = None
    max_num_batched_tokens: int = 2048

    def __post_init__(self) -> None:
        for name, low in (("max_num_seqs", 1), ("max_num_draft_tokens", 1), ("max_num_batched_tokens", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InvalidInputError(name, value, f"give a whole number of {low} or more")
        if self.max_model_len is not None and (not isinstance(self.max_model_len, int) or self.max_model_len < 2):
            raise InvalidInputError("max_model_len", self.max_model_len, "give a whole number of 2 or more, or None")
        memory = self.kv_cache_memory
        is_share = isinstance(memory, float) and 0.0 < memory < 1.0
        is_bytes = isinstance(memory, int) and not isinstance(memory, bool) and memory > 0
        if memory is not None and not is_share and not is_bytes:
            raise InvalidInputError("kv_cache_memory", memory, "give a number of bytes, or a share of the free memory between 0.0 and 1.0")
        if self.enable_prefix_caching not in (None, True, False):
            raise InvalidInputError("enable_prefix_caching", self.enable_prefix_caching, "give True, False or None")
        check_num_draft_tokens(self.num_draft_tokens)
