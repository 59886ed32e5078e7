"""Sample, then match: the target's token at each row, and the walk down the draft."""

from __future__ import annotations

from collections.abc import Callable

import torch

from forerun.types import TokenLogprobs, TokenTree


def draw(
    # [vocab_size] float32, processed
    row: torch.Tensor,
    # [vocab_size] Gumbel noise; None is argmax
    noise: torch.Tensor | None,
) -> int:
    """Gumbel-max: the argmax of `row + noise` has the law softmax(row) (Gumbel 1954; Maddison et al. 2014)."""
    return int((row if noise is None else row + noise[: row.numel()]).argmax())


def walk(tree: TokenTree, target_token_at: Callable[[int], int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Follows the target's own tokens down the draft.

    `target_token_at(node)` is the token that the target draws after `node` (-1: after the last known token). Returns the
    accepted nodes, and their tokens with the target's own at the end. Exact for any tree that was built without the target's draws.
    """
    path: list[int] = []
    token_ids: list[int] = []
    node = -1
    while True:
        token_id = target_token_at(node)
        token_ids.append(token_id)
        child = tree.child(node, token_id)
        if child is None:
            return tuple(path), tuple(token_ids)
        path.append(child)
        node = child


def token_logprobs(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Of one row of unprocessed target logits `[vocab_size]`: the token's log-probability and the `num_top` highest."""
    logprobs = logits.to(torch.float32).log_softmax(dim=-1)
    top = logprobs.topk(num_top)
    return TokenLogprobs(
        float(logprobs[token_id]),
        {int(i): float(v) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)},
    )
