"""Forced tokens: where a grammar leaves no choice, the next tokens are known without a model (a JSON schema's keys and quotes, say)."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.drafters.base import DraftRequest
from forerun.types import TokenTree, Verified


class ForcedTokens:
    """Drafts what the grammar of a request forces. Still a guess: the same text may be cut into other tokens."""

    name = "forced_tokens"

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[int]) -> list[TokenTree]:
        return [self._draft(request, most) for request, most in zip(requests, budget, strict=True)]

    @staticmethod
    def _draft(request: DraftRequest, most: int) -> TokenTree:
        state = request.path_state
        return TokenTree() if state is None or most == 0 else TokenTree.chain(state.forced_token_ids()[:most])

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass

    def free(self, request_ids: Sequence[int]) -> None:
        pass
