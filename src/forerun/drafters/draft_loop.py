"""Chains of drafts in one replay: k tokens of a draft model without the host between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from forerun.drafters.base import DraftRequest
from forerun.kernels.row_tables import RowTables
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.models.attention import Segment
from forerun.models.causal_model import PREFILL_ROWS
from forerun.models.paged_model import PagedModel
from forerun.models.pass_tables import PassTables
from forerun.models.recorder import Pass
from forerun.sampling.drawn_ahead import under_noise
from forerun.sampling.noise import GumbelNoise, row_key


def can_loop(request: DraftRequest) -> bool:
    """Whether the request's guesses need nothing from the host: truncation is the target's matter, but penalties, grammars and drawn drafts are not."""
    params = request.params
    plain = not (params.has_penalties or params.logit_bias) and request.path_state is None
    return plain and (params.acceptance == "match" or params.is_greedy)


@dataclass(slots=True)
class _Loop:
    """One shape of the loop: `texts` are the rows that bring the caches up to the texts, `chains` one row a text, which walks on."""

    texts: PassTables
    chains: PassTables
    said: torch.Tensor  # [2 + depth, num_chains] int64: each text's last row among those of `texts`, its temperature (a float64's bits), keys of the noise
    on_host: torch.Tensor  # the same, in memory that is copied from at once
    run: Pass | None = None


class DraftLoop:
    """For a model whose passes are paged. Guesses are the tokens that win under the target's own noise, or the likeliest at temperature 0."""

    def __init__(self, model: PagedModel, vocab_size: int, noise: GumbelNoise, max_len: int) -> None:
        self._model = model
        self._vocab_size = vocab_size  # of both
        self._noise = noise.on(model.device)
        self._max_len = max_len
        self._memory = model.memory
        self._loops: dict[tuple[int, int, int, int], _Loop] = {}

    def __call__(self, requests: Sequence[DraftRequest], segments: Sequence[Segment], depth: int) -> list[list[tuple[int, float]]]:
        """For each request `depth` token ids with their probabilities, fewer where the model's logits are not finite.

        `segments` are the rows that its cache lacks. They are known afterwards, and so are those of all guesses but the last.
        """
        if self._memory is not self._model.memory:  # what is recorded writes to the other one
            self._memory = self._model.memory
            self._loops.clear()
        segments = self._brief(segments)
        ends = list(accumulate(len(segment.token_ids) for segment in segments))
        texts = self._model.shape(segments, ends[-1])
        walking = [Segment(each.kv, [0] * depth, each.start + len(each.token_ids)) for each in segments]
        chains = self._model.shape(walking, len(segments))
        loop = self._loop(texts[0], chains[0], max(texts[1], chains[1]), depth)
        self._model.fill(loop.texts, segments)
        self._model.fill(loop.chains, [Segment(each.kv, [0], each.start) for each in walking], room=depth)
        self._say(loop, requests, ends, depth)
        if loop.run is None:  # only now: recording runs it, and writes where the tables say
            loop.run = self._model.recorded(lambda: self._walk(loop, depth))
        found = loop.run()[:, :, : len(requests)].tolist()  # waits for the device: once
        for segment in segments:
            segment.kv.advance(len(segment.token_ids) + depth - 1)
        return [_finite([(int(tokens[index]), scores[index]) for tokens, scores in zip(*found, strict=True)]) for index in range(len(requests))]

    def _brief(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """Rows that fit one pass: where they do not, all but the last of each text are read before."""
        if sum(len(segment.token_ids) for segment in segments) <= PREFILL_ROWS:
            return segments
        for segment in segments:
            self._model.prefill(Segment(segment.kv, segment.token_ids[:-1], segment.start))
            segment.kv.advance(len(segment.token_ids) - 1)
        return [Segment(each.kv, each.token_ids[-1:], each.start + len(each.token_ids) - 1) for each in segments]

    def _say(self, loop: _Loop, requests: Sequence[DraftRequest], ends: Sequence[int], depth: int) -> None:
        """What differs from call to call beside the rows."""
        said = loop.on_host[:, : len(requests)]
        temperatures = [0.0 if request.params.is_greedy else request.params.temperature for request in requests]
        said[0] = torch.tensor(ends) - 1
        said[1] = torch.tensor(temperatures, dtype=torch.float64).view(torch.int64)
        said[2:] = torch.tensor([[row_key(request.seed, len(request.token_ids) + step) for request in requests] for step in range(depth)])
        loop.said.copy_(loop.on_host, non_blocking=True)  # it is not written to again before the device was waited for

    def _loop(self, num_rows: int, num_chains: int, max_blocks: int, depth: int) -> _Loop:
        key = (num_rows, num_chains, max_blocks, depth)
        if key not in self._loops:
            device = self._model.device
            self._loops[key] = _Loop(
                PassTables(num_rows, max_blocks, device),
                PassTables(num_chains, max_blocks, device),
                torch.zeros(2 + depth, num_chains, dtype=torch.int64, device=device),
                torch.zeros(2 + depth, num_chains, dtype=torch.int64, pin_memory=device.type == "cuda"),
            )
        return self._loops[key]

    def _walk(self, loop: _Loop, depth: int) -> torch.Tensor:
        """Token ids and probabilities `[2, depth, num_chains]` in float64. Nothing in it waits for the device."""
        texts, (last_rows, temperatures, *keys) = loop.texts, loop.said
        logits = self._model.run(texts.token_ids, texts.rows.positions, self._model.plan(texts.rows))[last_rows]
        tokens, scores = [], []
        for step in range(depth):
            token_ids, score = self._best(logits[:, : self._vocab_size], temperatures.view(torch.float64).float(), keys[step])
            tokens.append(token_ids.double())
            scores.append(score.double())
            if step + 1 < depth:
                rows = _further(loop.chains.rows, step, self._model.scrap_slot)
                positions = rows.positions.clamp(max=self._max_len - 1)  # a chain that is longer than its own request asked for
                logits = self._model.run(token_ids, positions, self._model.plan(rows))
        return torch.stack([torch.stack(tokens), torch.stack(scores)])

    def _best(self, logits: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The winner of each row, and its share of the softmax; without noise at temperature 0."""
        is_drawn = temperatures > 0.0
        noise = torch.where(is_drawn[:, None], self._noise.rows(keys)[:, : self._vocab_size], 0.0)
        scaled = under_noise(logits, torch.where(is_drawn, temperatures, 1.0), noise)
        best = scaled.max(dim=-1)
        return best.indices, (best.values - scaled.logsumexp(dim=-1)).exp()


def _further(rows: RowTables, step: int, scrap_slot: int) -> RowTables:
    """The same chains `step` positions on."""
    pads = rows.positions < 0
    positions = rows.positions + step
    blocks = rows.block_tables[rows.sequences.long()]
    block = blocks.gather(1, (positions.clamp(min=0) // PAGE_SIZE).long()[:, None])[:, 0]
    slots = torch.where(pads, scrap_slot, block * PAGE_SIZE + positions % PAGE_SIZE)
    positions = torch.where(pads, -1, positions)
    return RowTables(positions, slots, rows.sequences, positions + 1, rows.paths, rows.block_tables, rows.tiles)


def _finite(guesses: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Up to the first whose probability is no number or none at all."""
    cut = next((index for index, (_, score) in enumerate(guesses) if not score > 0.0), len(guesses))
    return guesses[:cut]


__all__ = ["DraftLoop", "can_loop"]
