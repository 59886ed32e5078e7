"""One tree out of the drafts of several drafters."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.types import TokenTree


def merge(trees: Sequence[TokenTree], edges: Sequence[Sequence[float]]) -> tuple[TokenTree, list[float]]:
    """The union of the trees, the same guess of two of them folded into one node, and each node's edge probability: the higher one.

    Nodes keep the order of the trees, so parents stand before children. A node's source is the first that guessed it. Laws are dropped: a merged
    draft is a set of guesses.
    """
    token_ids: list[int] = []
    parents: list[int] = []
    sources: list[str] = []
    found: list[float] = []
    places: dict[tuple[int, int], int] = {}
    for tree, own in zip(trees, edges, strict=True):
        place = {-1: -1}
        for node, (token_id, parent) in enumerate(zip(tree.token_ids, tree.parents, strict=True)):
            key = (place[parent], token_id)
            if key not in places:
                places[key] = len(token_ids)
                token_ids.append(token_id)
                parents.append(key[0])
                sources.append(tree.sources[node])
                found.append(own[node])
            place[node] = places[key]
            found[place[node]] = max(found[place[node]], own[node])
    return TokenTree(tuple(token_ids), tuple(parents), sources=tuple(sources)), found
