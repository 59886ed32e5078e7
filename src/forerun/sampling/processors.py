"""Logits to processed logits, one row with the prefix of that row. The only place where sampling parameters act."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.config import SamplingParams
from forerun.sampling.path_state import PathState
from forerun.types import RequestFailedError

_NEVER = float("-inf")


def process(
    # [vocab_size], any float dtype; not modified
    logits: torch.Tensor,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    end_token_ids: Sequence[int],
    # where the prefix stands in grammar and processors; None where the parameters ask for none of these
    path_state: PathState | None = None,
) -> torch.Tensor:
    """`[vocab_size]` float32 whose softmax is the law of the next token; at temperature 0 whose argmax is the token.

    Order: bias, `min_tokens`, bad words and grammar, penalties, processors of the request's own, temperature, min-p, top-k, top-p
    (vLLM's, with the processors where transformers has them). What `min_tokens`, a bad word or the grammar forbids stays forbidden
    behind the processors. Raises RequestFailedError where a processor or the grammar breaks, or no token is left.
    """
    row = logits.to(torch.float32, copy=True)
    for token_id, bias in params.logit_bias.items():
        row[token_id] += bias
    if len(output_token_ids) < params.min_tokens and end_token_ids:
        row[list(end_token_ids)] = _NEVER
    if path_state is not None:
        path_state.mask_(row, output_token_ids)
    if params.has_penalties:
        _penalise_(row, params, prompt_token_ids, output_token_ids)
    if path_state is not None:
        row = _processed(row, params, path_state, prompt_token_ids, output_token_ids)
    if params.is_greedy:
        return row
    return truncate_(row.div_(params.temperature), params)


def _processed(
    row: torch.Tensor, params: SamplingParams, path_state: PathState, prompt: Sequence[int], output: Sequence[int]
) -> torch.Tensor:
    if path_state.processors:
        forbidden = row == _NEVER
        row = path_state.processed(row, [*prompt, *output]).masked_fill(forbidden, _NEVER)
    best = float(row.max())
    if best == _NEVER:
        asked = {
            "min_tokens": len(output) < params.min_tokens, "bad_words": params.bad_words,
            "structured_outputs": params.structured_outputs is not None, "logits_processors": params.logits_processors,
        }  # fmt: skip
        together = " and ".join(name for name, active in asked.items() if active)
        raise RequestFailedError(f"{together}: every token at position {len(prompt) + len(output)} is forbidden: loosen them")
    if not abs(best) < float("inf"):
        raise RequestFailedError("logits_processors: the scores that came back are not finite")
    return row


def _penalise_(row: torch.Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> None:
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *output}), dtype=torch.int64, device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if output and (params.frequency_penalty or params.presence_penalty):
        ids, counts = torch.tensor(output, dtype=torch.int64, device=row.device).unique(return_counts=True)
        row[ids] -= params.frequency_penalty * counts + params.presence_penalty


def truncate_(row: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """min-p, top-k and top-p on one row of tempered logits, in place. The most likely token always stays."""
    if params.min_p > 0.0:
        # p(x) < min_p * p(best), in logits: no exponential needed
        floor = row.max() + torch.log(torch.tensor(params.min_p, dtype=torch.float32, device=row.device))
        row.masked_fill_(row < floor, _NEVER)
    if 0 < params.top_k < row.numel():
        row.masked_fill_(row < row.topk(params.top_k).values[-1], _NEVER)
    if params.top_p < 1.0:
        values, order = row.sort(descending=True, stable=True)
        probabilities = values.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        cut = before >= params.top_p
        cut[0] = False
        row.scatter_(0, order, values.masked_fill_(cut, _NEVER))
    return row
