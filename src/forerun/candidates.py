"""Verification alone, for people who own their loop: one forward pass over inputs and candidates."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from forerun.config import SamplingParams
from forerun.sampling.noise import GumbelNoise, derived_seed
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw, walk
from forerun.types import InvalidInputError, RequestFailedError, TokenTree


@dataclass(frozen=True, slots=True)
class CandidateVerification:
    """What the target says of each row's candidates.

    `num_accepted` `[batch]`: leading candidates that are the target's own tokens. `next_token_ids` `[batch]`: the target's token
    after those. `predicted_token_ids` `[batch, longest]`: the target's token at every candidate position, given the candidates
    before it; -1 past a row's candidates. `seed`: repeats the draw (unused at temperature 0).
    """

    num_accepted: torch.Tensor
    next_token_ids: torch.Tensor
    predicted_token_ids: torch.Tensor
    seed: int


@torch.no_grad()
def verify_candidate_sequence(
    model: PreTrainedModel | Callable[..., Any],
    # [batch, num_input_tokens]
    input_ids: torch.Tensor,
    # [batch, num_candidates] with -1 where a row has fewer, or one sequence of ids a row
    candidate_ids: torch.Tensor | Sequence[Sequence[int]],
    *,
    # [batch, num_input_tokens], 0 where padded, on either side
    attention_mask: torch.Tensor | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
) -> CandidateVerification:
    """One parallel pass of `model` over inputs and candidates; accepts, row by row, what the target would have written itself.

    `model` is a transformers causal LM, or a callable `(input_ids, attention_mask=...)` that returns logits
    `[batch, sequence, vocab]` or an object that has them as `.logits`. Rows may have different numbers of candidates.
    The logits that judge a candidate stand one position before it: the first candidate is judged at the last input token.
    At `temperature` over 0 the target's tokens are drawn with noise keyed by (seed, row, position): the same seed accepts the
    same tokens in any split of the work.

    Raises InvalidInputError for shapes or ids that do not fit, RequestFailedError where the logits are not finite.
    """
    params = SamplingParams(temperature=temperature, seed=seed)
    seed = secrets.randbits(32) if seed is None else seed
    inputs = _rows_of(input_ids, attention_mask)
    candidates = _candidates(candidate_ids, len(inputs))
    tokens, mask = _right_padded([row + guesses for row, guesses in zip(inputs, candidates, strict=True)], input_ids.device)
    output = model(input_ids=tokens, attention_mask=mask) if isinstance(model, PreTrainedModel) else model(tokens, attention_mask=mask)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise InvalidInputError("logits", tuple(logits.shape), f"the model must return [batch, sequence, vocab], here [{tokens.shape[0]}, {tokens.shape[1]}, vocab]")
    noise = None if params.is_greedy else GumbelNoise(logits.shape[-1], logits.device)

    longest = max(map(len, candidates))
    accepted, next_ids, predicted = [], [], []
    for row, (known, guesses) in enumerate(zip(inputs, candidates, strict=True)):
        rows = logits[row, len(known) - 1 : len(known) + len(guesses)]
        if not torch.isfinite(rows.max(dim=-1).values).all():
            raise RequestFailedError(f"the target's logits of row {row} are not finite: check the weights, or run the model in float32")
        row_seed = derived_seed(seed, row)
        own = [
            draw(process(logits_row, params, known, guesses[:index], ()), None if noise is None else noise.row(row_seed, len(known) + index))
            for index, logits_row in enumerate(rows)
        ]
        path, kept = walk(TokenTree.chain(guesses), lambda node, own=own: own[1 + node])  # type: ignore[misc]
        accepted.append(len(path))
        next_ids.append(kept[-1])
        predicted.append(own[: len(guesses)] + [-1] * (longest - len(guesses)))

    def as_tensor(values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=input_ids.device)

    return CandidateVerification(as_tensor(accepted), as_tensor(next_ids), as_tensor(predicted).view(len(inputs), longest), seed)


def _rows_of(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise InvalidInputError("input_ids", tuple(input_ids.shape), "give a tensor [batch, num_input_tokens] that is not empty")
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise InvalidInputError("attention_mask", tuple(attention_mask.shape), f"give the shape of input_ids, {tuple(input_ids.shape)}")
    rows = [ids[keep].tolist() for ids, keep in zip(input_ids, attention_mask.bool(), strict=True)]
    if not all(rows):
        raise InvalidInputError("attention_mask", "a row of zeros", "each row needs at least one token")
    return rows


def _candidates(candidate_ids: torch.Tensor | Sequence[Sequence[int]], batch: int) -> list[list[int]]:
    if isinstance(candidate_ids, torch.Tensor):
        rows = [[token_id for token_id in row if token_id != -1] for row in candidate_ids.tolist()]
    else:
        rows = [[int(token_id) for token_id in row] for row in candidate_ids]
    if len(rows) != batch:
        raise InvalidInputError("candidate_ids", f"{len(rows)} rows", f"give one row of candidates for each of the {batch} input rows")
    wrong = [token_id for row in rows for token_id in row if token_id < 0]
    if wrong:
        raise InvalidInputError("candidate_ids", wrong[0], "give token ids of 0 or more; -1 pads a tensor")
    return rows


def _right_padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Padding behind a causal row changes nothing before it."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return tokens, mask
