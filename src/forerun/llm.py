"""The offline API: prompts in, results out."""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forerun.config import EngineConfig, NumDraftTokens, SamplingParams, resolve_device, resolve_dtype
from forerun.drafters import Drafter, DrafterContext, DrafterSpec, create
from forerun.engine.llm_engine import LLMEngine
from forerun.engine.request import Request
from forerun.engine.saved_request import SavedRequest
from forerun.kv_cache.paged import PagedCache
from forerun.models.cache_memory import MemoryPlan, share_out
from forerun.models.choice import causal_model, prepare_layers
from forerun.models.exactness import Exactness, establish
from forerun.models.loading import RECOMMENDED_DRAFTERS, check_class, load_model, load_tokenizer, own_tokenizer, shared_copy, weights_size
from forerun.models.paged_model import PagedModel
from forerun.models.pass_cost import PassCost
from forerun.models.reference import check_against_reference
from forerun.sampling.noise import GumbelNoise
from forerun.speculator.explanation import Explanation
from forerun.types import ForerunError, InvalidInputError, ModelLoadError, RequestOutput, SpeculationStats, StreamedToken

logger = logging.getLogger(__name__)

DRAFTER_FACTOR = 1.5  # what draft models take, in sizes of their weights
Prompt = str | Sequence[int]
Drafters = DrafterSpec | Sequence[DrafterSpec] | None


class LLM:
    """A target with its drafters. The tokens are the target's alone, whatever the drafters guess.

    `target`: "forerun/default" (bundled), a hub id, a model folder, or a loaded transformers model (left as it is).
    `drafter`: a name ("prompt_lookup"), a model folder or hub id, a loaded model, several of these, "none" or None for plain
    decoding; "auto" takes the drafter recommended for the target, else prompt lookup.
    `drafter_device`: where draft models run; None is the target's device.
    `dtype`: "bfloat16", "float32", ... ; None is the checkpoint's own, or float32 where the processor would have to emulate that. `device`: "cpu", "cuda", ...

    The other settings are those of `EngineConfig`.

    Raises ModelLoadError or InvalidInputError saying what does not fit and what to do.
    """

    def __init__(
        self,
        target: str | Path | PreTrainedModel,
        drafter: Drafters | Literal["auto"] = "auto",
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        drafter_device: str | torch.device | None = None,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        max_num_seqs: int = 16,
        max_model_len: int | None = None,
        num_draft_tokens: NumDraftTokens = "auto",
        kv_cache_memory: int | float | None = None,
        enable_prefix_caching: bool | None = None,
        max_num_batched_tokens: int = 2048,
    ) -> None:
        config = EngineConfig(
            max_num_seqs,
            max_model_len,
            num_draft_tokens,
            kv_cache_memory=kv_cache_memory,
            enable_prefix_caching=enable_prefix_caching,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        model = self._load_target(target, resolve_dtype(dtype), device)
        self.tokenizer = self._load_tokenizer(target, model, tokenizer)
        self.max_model_len = _context(model, max_model_len)
        check_against_reference(model)
        prepare_layers(model)
        causal = causal_model(model)
        self.exactness: Exactness = establish(causal, self.max_model_len)
        noise = GumbelNoise(causal.vocab_size, causal.device)
        eos = _eos_token_ids(model, self.tokenizer)
        remembers = self.exactness.kind == "bitwise" if enable_prefix_caching is None else enable_prefix_caching
        self.memory: MemoryPlan
        drafts_on = causal.device if drafter_device is None else resolve_device(drafter_device, "drafter_device")
        specs = drafter_specs(drafter, target)
        reserved = sum(map(weights_size, specs)) if causal.device.type != "cpu" and drafts_on == causal.device else 0
        self.memory, num_blocks = share_out(causal, config, self.max_model_len, int(DRAFTER_FACTOR * reserved))
        logger.info("%s: %s", type(model).__name__, self.memory)
        kv_cache = PagedCache(num_blocks, remembers=remembers, device=causal.device)
        if isinstance(causal, PagedModel):
            causal.use_memory(kv_cache)
            _record(causal)
        context = DrafterContext(causal.vocab_size, self.max_model_len, eos, noise, drafts_on, model.dtype, self.tokenizer, causal, kv_cache)
        drafters = _told_apart([create(spec, context) for spec in specs])
        self.drafter_names = [made.name for made in drafters]
        passes = PassCost.measure(causal, self.max_model_len) if drafters else PassCost.unknown()
        self.engine = LLMEngine(causal, kv_cache, drafters, noise, config, self.tokenizer, eos, self.max_model_len, passes)

    @staticmethod
    def _load_target(target: str | Path | PreTrainedModel, dtype: torch.dtype | None, device: str | torch.device | None) -> PreTrainedModel:
        if not isinstance(target, PreTrainedModel):
            model = load_model(target, dtype, resolve_device(device))
            check_class(model, str(target))
            return model
        check_class(target, "target")
        if dtype is not None and dtype != target.dtype:
            raise InvalidInputError("dtype", dtype, f"the loaded model is {target.dtype}: leave dtype out, or convert the model first")
        if device is not None and resolve_device(device).type != target.device.type:
            raise InvalidInputError("device", device, f"the loaded model is on {target.device}: leave device out, or move the model first")
        return shared_copy(target)

    @staticmethod
    def _load_tokenizer(
        target: str | Path | PreTrainedModel, model: PreTrainedModel, given: PreTrainedTokenizerBase | str | Path | None
    ) -> PreTrainedTokenizerBase | None:
        if isinstance(given, (str, Path)):
            tokenizer = load_tokenizer(given)
        elif given is not None:
            tokenizer = given
        else:
            tokenizer = own_tokenizer(target)
        if tokenizer is not None and not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelLoadError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json backend: convert it to a fast tokenizer")
        return tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continues prompts (texts or token ids) together, as one ragged batch; `params` is one for all or one a prompt.

        A prompt that cannot be honoured gets an output whose `error` says why, and the others finish.
        """
        many = _as_prompts(prompts)
        each = _as_params(params, len(many))
        pending: dict[int, RequestOutput] = {}  # by request id
        try:
            outputs = [self._submit(prompt, asked, pending) for prompt, asked in zip(many, each, strict=True)]
            self._run(pending, {}, progress)
        finally:
            self._abort(pending)
        return outputs

    def resume(self, saved: SavedRequest | Sequence[SavedRequest], *, progress: bool = False) -> list[RequestOutput]:
        """Goes on with saved requests, in this process or another: the outputs hold the saved tokens and the new ones.

        One that cannot be honoured gets an output whose `error` says why, and the others finish.
        """
        outputs: list[RequestOutput] = []
        pending: dict[int, RequestOutput] = {}
        finished: dict[int, Request] = {}
        try:
            for each in [saved] if isinstance(saved, SavedRequest) else saved:
                outputs.append(RequestOutput(None, each.prompt_token_ids))
                try:
                    request = self.engine.resume_request(each)
                except ForerunError as error:
                    outputs[-1].error = error
                    continue
                pending[request.request_id] = outputs[-1]
                if request.finish_reason is not None:
                    finished[request.request_id] = request
            self._run(pending, finished, progress)
        finally:
            self._abort(pending)
        return outputs

    def _run(self, pending: dict[int, RequestOutput], finished: dict[int, Request], progress: bool) -> None:
        """Steps until all of `pending` are finished, and collects them in the order of asking, not of finishing."""
        with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
            task = bar.add_task("generating", total=len(pending), completed=len(finished))
            while len(finished) < len(pending):
                for update in self.engine.step():
                    if update.request.finish_reason is not None and update.request.request_id in pending:
                        finished[update.request.request_id] = update.request
                        bar.advance(task)
        for request_id, output in pending.items():
            _collect(output, finished[request_id])

    def _abort(self, request_ids: Iterable[int]) -> None:
        """Takes out what an interruption left behind; finished requests are gone already."""
        for request_id in request_ids:
            self.engine.abort(request_id)

    def _submit(self, prompt: Prompt, params: SamplingParams, pending: dict[int, RequestOutput]) -> RequestOutput:
        output = RequestOutput(prompt if isinstance(prompt, str) else None, [])
        try:
            output.prompt_token_ids = self.encode(prompt)
            pending.update(dict.fromkeys(self.engine.add_request(output.prompt_token_ids, params), output))
        except ForerunError as error:
            output.error = error
        return output

    def warm_up(self) -> None:
        """A few steps with drafts of several lengths and without: what happens for the first time (captured passes, kernels chosen) happens now."""
        prompt = [min(7, self.engine.vocab_size - 1)] * min(8, self.max_model_len - 1)
        room = self.max_model_len - len(prompt)
        for length in (0, 1, 4):
            params = SamplingParams(temperature=0.0, max_tokens=max(1, min(6, room)), num_draft_tokens=length, ignore_eos=True, cache_salt="warm-up")
            self.generate([prompt], params)

    def explain(self) -> Explanation:
        """What plain decoding costs here, what the drafters cost and bring, the speedup so far, and why drafts were cut: of all requests that finished."""
        return self.engine.explain()

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamedToken]:
        """Yields tokens of one prompt as they are known; the last one carries the finish reason. Raises what ends the request."""
        params = params or SamplingParams()
        if params.n != 1:
            raise InvalidInputError("n", params.n, "stream one continuation at a time, or use generate")
        (request_id,) = self.engine.add_request(self.encode(prompt), params)
        finished = False
        try:
            while not finished:
                for update in self.engine.step():
                    if update.request.request_id != request_id:
                        continue
                    finished = update.request.finish_reason is not None
                    yield from update.tokens
                    if update.request.error is not None:
                        raise update.request.error
        finally:
            if not finished:
                self.engine.abort(request_id)

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, or several: lists of `{"role": ..., "content": ...}`, through the tokenizer's chat template."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise InvalidInputError("messages", "chat", "the target's tokenizer has no chat template: use generate with a prompt")
        single = bool(messages) and isinstance(messages[0], dict)
        conversations = cast(list[list[dict[str, Any]]], [list(messages)] if single else [list(each) for each in messages])
        texts = [str(self.tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True)) for each in conversations]
        # templates of most models write their own BOS; those that do not get the tokenizer's
        bos = self.tokenizer.bos_token or ""
        prompts = [self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos))).input_ids for text in texts]
        return self.generate(cast(list[Prompt], prompts), params)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. Raises InvalidInputError for an empty text, and for text where there is no tokenizer."""
        if not isinstance(prompt, str):
            try:
                return [operator.index(token_id) for token_id in prompt]
            except TypeError as error:
                raise InvalidInputError("prompt", prompt, "give text, or token ids as whole numbers") from error
        if not prompt:
            raise InvalidInputError("prompt", prompt, "give some text, or token ids")
        if self.tokenizer is None:
            raise InvalidInputError("prompt", prompt, "the target came without a tokenizer: give tokenizer=..., or token ids")
        return cast(list[int], self.tokenizer(prompt).input_ids)


def _record(model: PagedModel) -> None:
    """The passes that every text needs; others are recorded when their shape first comes up."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("recording passes", total=None)
        for done, total in model.record_ahead():
            bar.update(task, completed=done, total=total)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A text or a list of token ids is one prompt; a list of those are many."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise InvalidInputError("prompts", prompts, "give a text, a list of token ids, or a list of those")
    if prompts and isinstance(prompts[0], int):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _as_params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidInputError("params", f"{len(params)} of them", f"give one SamplingParams for all prompts, or {count}, one a prompt")
    wrong = [each for each in params if not isinstance(each, SamplingParams)]
    if wrong:
        raise InvalidInputError("params", wrong[0], "give SamplingParams(...)")
    return list(params)


def _collect(output: RequestOutput, request: Request) -> None:
    if request.error is not None:
        output.error = request.error
        return
    if request.params.prompt_logprobs is not None:
        output.prompt_logprobs = request.prompt_logprobs
    output.completions.append(request.output())


def _told_apart(drafters: list[Drafter]) -> list[Drafter]:
    """Requests choose drafters by name, and figures are kept by name: a second one of the same name is numbered."""
    taken: set[str] = set()
    for drafter in drafters:
        names = chain([drafter.name], (f"{drafter.name}#{number}" for number in count(2)))
        name = next(each for each in names if each not in taken)
        taken.add(name)
        if name != drafter.name:
            drafter.name = name
    return drafters


def drafter_specs(drafter: Drafters | Literal["auto"], target: str | Path | PreTrainedModel) -> list[DrafterSpec]:
    """What `drafter` stands for beside this target: no drafters for "none", the recommended one for "auto"."""
    if isinstance(drafter, str) and drafter == "auto":
        return [RECOMMENDED_DRAFTERS.get(str(target), "prompt_lookup")] if not isinstance(target, PreTrainedModel) else ["prompt_lookup"]
    several: list[Any] = list(drafter) if isinstance(drafter, (list, tuple)) else [drafter]
    return [spec for spec in several if spec is not None and not (isinstance(spec, str) and spec == "none")]


def _context(model: PreTrainedModel, asked: int | None) -> int:
    own = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if own is None and asked is None:
        raise InvalidInputError("max_model_len", None, "the model's config names no context length: give one")
    if own is not None and asked is not None and asked > own:
        raise InvalidInputError("max_model_len", asked, f"give at most {own}, the model's own context")
    return asked if asked is not None else int(cast(int, own))


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """What the model's generation config calls the end; else what its tokenizer does."""
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    if eos is None and tokenizer is not None:
        eos = tokenizer.eos_token_id
    ids = eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos]
    num_embeddings = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    return tuple(int(i) for i in ids if 0 <= int(i) < num_embeddings)


def total_stats(outputs: Sequence[RequestOutput]) -> SpeculationStats:
    """The figures of many outputs added up; failed ones count nothing."""
    total = SpeculationStats()
    for stats in (completion.stats for output in outputs for completion in output.completions):
        total.add(stats)
    return total
