"""Traversal verification: accepts more of a drawn draft than any rule that goes from the top, and leaves the law as it is.

Traversal verification (arXiv 2505.12398); on a chain it is block verification (arXiv 2403.10444), on a single token the rule of
speculative sampling (arXiv 2211.17192, 2302.01318).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from forerun.types import TokenTree

Accepted = tuple[tuple[int, ...], torch.Tensor]


def traverse(
    tree: TokenTree,
    # [vocab_size] probabilities of the target after a node (-1: the root)
    target_law_at: Callable[[int], torch.Tensor],
    # the coin of a node (-1: the root), uniform on [0, 1] and independent of the draft
    uniform_at: Callable[[int], float],
) -> Accepted:
    """The accepted path, and the law `[vocab_size]` (float64) from which the next token is to be drawn.

    Both together leave the target's law of the text unchanged, provided that `tree.laws` are the laws that the nodes were drawn from. From the
    leaves up, siblings in the order of drawing: a node is accepted with a weight that makes up for how likely the drafter was to propose its
    path, and what it leaves over goes to its next sibling, then to its parent. The target is asked only where a weight is over 0.
    """
    children: list[list[int]] = [[] for _ in range(len(tree) + 1)]
    for node, parent in enumerate(tree.parents):
        children[parent].append(node)  # the root's are the last list

    def visit(path: tuple[int, ...], weight: float) -> Accepted | None:
        """Accepts, with probability `weight` over coins and draws below, the path or one that goes on from it; else None."""
        node = path[-1] if path else -1
        siblings = children[node]
        if not siblings:  # its law matters only if it is accepted
            return (path, _normalised(target_law_at(node))) if uniform_at(node) <= weight else None
        law = _normalised(target_law_at(node))
        for index, child in enumerate(siblings):
            token_id = tree.token_ids[child]
            drawn = _drawn_from(tree, child, siblings[:index], law)
            child_weight = min(1.0, weight * float(law[token_id] / drawn[token_id]))
            found = visit((*path, child), child_weight) if child_weight > 0 else None
            if found is not None:
                return found
            weight, law = _left_over(weight, law, drawn)
            if weight == 0:
                return None
        return (path, law) if uniform_at(node) <= weight else None

    accepted = visit((), 1.0)
    assert accepted is not None, "the root's weight stays 1, and no coin is over 1"
    return accepted


def _normalised(law: torch.Tensor) -> torch.Tensor:
    law = law.double()
    return law / law.sum()


def _drawn_from(tree: TokenTree, node: int, drawn_before: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """The law of a node given its earlier siblings: those that share its tensor are out of it. A guess is a point mass. Shaped `like`."""
    token_id = tree.token_ids[node]
    law = tree.laws[node] if tree.laws else None
    drawn = torch.zeros_like(like)
    if law is not None:
        # A draw past the target's vocabulary never gets here, whatever else is drawn: the law is that of the others.
        drawn[: len(law)] = law[: len(like)].clamp(min=0.0)
        drawn[[tree.token_ids[sibling] for sibling in drawn_before if tree.laws[sibling] is law]] = 0.0
        drawn /= drawn.sum()
    if not drawn[token_id] > 0:
        # No draw, whatever its law says (a truncated law with more siblings than tokens, say). As a guess it cannot bend the text's law.
        drawn = torch.zeros_like(like)
        drawn[token_id] = 1.0
    return drawn


def _left_over(weight: float, law: torch.Tensor, drawn: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Weight and law of a node after a child drawn from `drawn` was refused: (weight * law - drawn)+, given the refusal."""
    residual = (weight * law - drawn).clamp_(min=0.0)
    mass = float(residual.sum())
    if mass > 0:
        return mass / (mass + (1.0 - weight)), residual / mass  # exactly 1 where the weight was
    # Nothing is left. At weight 1 that means law = drawn, where only rounding refuses: the law stands.
    return (1.0, law) if weight == 1.0 else (0.0, law)
