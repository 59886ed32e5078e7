"""`forerun acceptance`: what each rule would accept of the same drafts, at the same positions of texts that the target wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from forerun.bench.acceptance_report import FLOOR, OVERLAP, Position, mean_with_error, summarise, synthetic
from forerun.bench.harness import Advance, circumstances, encode
from forerun.bench.rules import MATCH_ARGMAX, argmax_survival, coupling_floor, overlap, survival, synthetic_pair
from forerun.config import GREEDY_BELOW, Acceptance, SamplingParams, check_num_draft_tokens
from forerun.drafters.draft_model import DraftModel
from forerun.llm import LLM, Drafters, drafter_specs
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.prompts import Prompt
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw
from forerun.types import InvalidInputError


@dataclass(frozen=True, slots=True)
class AcceptanceConfig:
    """What is compared. Texts of `max_tokens` are drafted from at every `every`-th position; `drafter` must be a model, the others have no laws."""

    target: str = "forerun/default"
    drafter: Drafters = "auto"
    dtype: str | None = None
    device: str | None = None
    temperatures: tuple[float, ...] = (0.6, 1.0, 1.5)
    num_draft_tokens: tuple[int, ...] = (4, 8)
    max_tokens: int = 64
    every: int = 4
    total_variations: tuple[float, ...] = (0.1, 0.2, 0.3)  # of the synthetic pair
    engine: bool = True  # whole texts through the engine, too
    command: str = ""

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("every", self.every)):
            if value < 1:
                raise InvalidInputError(name, value, "give a whole number of 1 or more")
        for number in self.num_draft_tokens:
            check_num_draft_tokens(number)
            if number == 0:
                raise InvalidInputError("num_draft_tokens", number, "give 1 or more: without a draft there is nothing to accept")
        for temperature in self.temperatures:
            SamplingParams(temperature=temperature)
            if temperature < GREEDY_BELOW:
                raise InvalidInputError("temperature", temperature, "give one over 0: at 0 all rules accept the same")
        for total_variation in self.total_variations:
            synthetic_pair(total_variation)


def compare_rules(config: AcceptanceConfig, prompts: Sequence[Prompt], advance: Advance = lambda done, total, what: None) -> dict[str, Any]:
    """Measures and returns the report, ready for JSON. Raises ForerunError for what cannot be loaded or honoured."""
    advance(0, 1, "loading")
    llm = LLM(config.target, config.drafter, dtype=config.dtype, device=config.device)
    drafter = next((each for each in llm.engine.speculator.drafters if isinstance(each, DraftModel)), None)
    if drafter is None:
        raise InvalidInputError("drafter", config.drafter, "give a model: other drafters draw from no law")
    longest = max(config.num_draft_tokens)
    encoded = [encode(llm, prompt, config.max_tokens + longest) for prompt in prompts]
    target = llm.engine.model_runner.model
    pair = _Pair(target, drafter.model, GumbelNoise(target.vocab_size, target.device), longest)
    results = []
    total = len(config.temperatures) * (len(encoded) + config.engine)
    done = 0
    for temperature in config.temperatures:
        params = [_params(config, temperature, seed) for seed in range(len(encoded))]
        by_prompt = []
        for prompt, each in zip(encoded, params, strict=True):
            advance(done, total, f"temperature {temperature:g}")
            text = llm.generate(prompt, each)[0].token_ids
            by_prompt.append(pair.positions(prompt + text, range(len(prompt), len(prompt) + len(text), config.every), each))
            done += 1
        found = summarise(by_prompt, config.num_draft_tokens)
        if config.engine:
            advance(done, total, f"temperature {temperature:g}, engine")
            for row in found["by_length"]:
                row["engine"] = _through_engine(llm, encoded, [replace(each, num_draft_tokens=row["num_draft_tokens"]) for each in params])
            done += 1
        results.append({"temperature": temperature, **found})
    advance(total, total, "done")
    return {
        **circumstances(config.command, config.target, llm, drafter_specs(config.drafter, config.target)),
        "prompts": [prompt.id for prompt in prompts],
        "max_tokens": config.max_tokens,
        "every": config.every,
        "results": results,
        "synthetic": [synthetic(each, config.num_draft_tokens) for each in config.total_variations],
    }


def _params(config: AcceptanceConfig, temperature: float, seed: int) -> SamplingParams:
    """Of plain decoding. Each prompt has a seed of its own, or neighbours would share their luck."""
    return SamplingParams(temperature=temperature, max_tokens=config.max_tokens, seed=seed, ignore_eos=True, num_draft_tokens=0)


def _through_engine(llm: LLM, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> dict[str, Any]:
    """Tokens a pass of whole texts by rule, as the engine decodes them: it drafts where its last pass ended, and less at the end of a text."""
    rules: tuple[Acceptance, ...] = ("match", "block")
    found: dict[str, Any] = {}
    for rule in rules:
        outputs = llm.generate(list(prompts), [replace(each, acceptance=rule) for each in params])
        found[rule] = mean_with_error([output.stats.acceptance_length for output in outputs])
    return found


class _Reader:
    """One text in one model's cache. What follows a position is written behind it, over whatever stood there."""

    def __init__(self, model: CausalModel, token_ids: list[int], num_draft_tokens: int) -> None:
        self._model = model
        self._token_ids = token_ids
        self._kv = model.own_sequence(len(token_ids) + num_draft_tokens)
        self._num_cached = 0

    def laws(self, start: int, draft: Sequence[int], params: SamplingParams, vocab_size: int) -> torch.Tensor:
        """`[1 + len(draft), vocab_size]` float64: of the token after the first `start` tokens of the text, and after each token of the draft."""
        if self._num_cached < start - 1:
            self._model.prefill(Segment(self._kv, self._token_ids[self._num_cached : start - 1], self._num_cached))
            self._num_cached = start - 1
        logits = self._model.forward([Segment(self._kv, [self._token_ids[start - 1], *draft], start - 1)])[:, :vocab_size]
        laws = torch.stack([process(row, params, [], [], []).double().softmax(dim=-1) for row in logits])
        return torch.nn.functional.pad(laws, (0, vocab_size - laws.shape[1]))  # a drafter may know fewer tokens


@dataclass(frozen=True, slots=True)
class _Pair:
    """Target and drafter, and the noise that they share."""

    target: CausalModel
    drafter: CausalModel
    noise: GumbelNoise
    num_draft_tokens: int

    @torch.inference_mode()
    def positions(self, token_ids: list[int], starts: Sequence[int], params: SamplingParams) -> list[Position]:
        """What the rules accept of drafts that follow the first `start` tokens, for each start."""
        target, drafter = (_Reader(model, token_ids, self.num_draft_tokens) for model in (self.target, self.drafter))
        return [self._position(target, drafter, start, params) for start in starts]

    def _position(self, target: _Reader, drafter: _Reader, start: int, params: SamplingParams) -> Position:
        vocab_size, device = self.target.vocab_size, self.target.device
        best, _ = self._draft(drafter, start, params, [None] * self.num_draft_tokens)
        noise = [self.noise.row(params.seed or 0, start + index) for index in range(self.num_draft_tokens)]
        drawn, draft_laws = self._draft(drafter, start, params, noise)
        laws = target.laws(start, drawn[:-1], params, vocab_size)
        chances = survival(laws, draft_laws, torch.tensor(drawn, device=device))
        chances[MATCH_ARGMAX] = argmax_survival(target.laws(start, best[:-1], params, vocab_size), torch.tensor(best, device=device))
        share = overlap(laws[0], draft_laws[0])
        return {rule: values.tolist() for rule, values in chances.items()} | {OVERLAP: [share], FLOOR: [coupling_floor(share)]}

    def _draft(
        self, drafter: _Reader, start: int, params: SamplingParams, noise: Sequence[torch.Tensor | None]
    ) -> tuple[list[int], torch.Tensor]:
        """Tokens drawn with these rows of noise (None: the best), and the laws `[num_tokens, vocab_size]` that they were drawn from."""
        token_ids: list[int] = []
        laws: list[torch.Tensor] = []
        for row in noise:
            laws.append(drafter.laws(start, token_ids, params, self.target.vocab_size)[-1])
            token_ids.append(draw(laws[-1].log().float(), row))
        return token_ids, torch.stack(laws)
