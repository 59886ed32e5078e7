"""Which of the drafted tokens to verify: over all requests, while expected tokens a second rise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forerun.types import TokenTree

LEAST = 0.01  # survival below which no row is cheap enough

# (rows, branches beside the first of each request, expected tokens) -> seconds of the step, without what was spent on drafting
StepSeconds = Callable[[int, int, float], float]


def admit(
    trees: Sequence[TokenTree],
    # one for each node: the probability that it is accepted; none above its parent's
    survivals: Sequence[Sequence[float]],
    *,
    num_rows: int,
    expected_tokens: float,
    step_seconds: StepSeconds,
    spent: float = 0.0,
    branch_seconds: float = 0.0,
) -> list[TokenTree]:
    """The trees without the nodes that do not pay.

    Nodes of all requests are taken by falling survival, which never takes a child before its parent; the rate `expected tokens / seconds`
    is evaluated behind each, because a staircase may pay again at its next edge, and the best count wins: none at all, too (algorithm:
    StairCut; DSpark's Algorithm 1 on trees). `num_rows` and `expected_tokens` are what runs anyway; `spent` seconds went into
    drafting. A node beside an admitted sibling begins a branch, which costs `branch_seconds` and is left out where it does not bring them back.
    """
    order = sorted((-survival, index, node) for index, each in enumerate(survivals) for node, survival in enumerate(each) if survival > LEAST)
    if not order:
        return [TokenTree()] * len(trees)
    num_branches = 0
    best = expected_tokens / (spent + step_seconds(num_rows, num_branches, expected_tokens))
    taken: list[tuple[int, int]] = []
    admitted: set[tuple[int, int]] = set()
    with_child: set[tuple[int, int]] = set()
    best_count = 0
    for negative, index, node in order:
        parent = (index, trees[index].parents[node])
        if parent[1] >= 0 and parent not in admitted:
            continue
        begins_branch = parent in with_child
        if begins_branch and -negative < best * branch_seconds:
            continue
        admitted.add((index, node))
        with_child.add(parent)
        taken.append((index, node))
        num_rows += 1
        num_branches += begins_branch
        expected_tokens -= negative
        rate = expected_tokens / (spent + step_seconds(num_rows, num_branches, expected_tokens))
        if rate > best:
            best, best_count = rate, len(taken)
    kept = set(taken[:best_count])
    return [tree.where(lambda node, index=index: (index, node) in kept) for index, tree in enumerate(trees)]  # type: ignore[misc]
