"""A small causal LM with another tokenizer as drafter (Timor et al. 2025, arXiv 2502.05202: TLI by shared tokens, SLEM by text)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.growing_tree import CAPTURED_ROWS, GrowingTree, levels_seconds
from forerun.drafters.guesses import guesses
from forerun.drafters.rewound_cache import SPARE_ROWS, RewoundCache
from forerun.drafters.text_draft import MORE_STEPS, KnownText, TextDraft
from forerun.drafters.vocabularies import Vocabulary, VocabularyPair
from forerun.models.attention import Segment
from forerun.models.cache_memory import draft_memory
from forerun.models.causal_model import CausalModel
from forerun.models.choice import causal_model, prepare_layers
from forerun.models.loading import check_class, load_model, own_tokenizer, shared_copy, shown_name
from forerun.models.paged_model import PagedModel
from forerun.models.pass_cost import PassCost
from forerun.types import InvalidInputError, ModelLoadError, TokenTree, Verified

Method = Literal["auto", "vocabulary", "text"]
METHODS = ("auto", "vocabulary", "text")
MAX_ROWS = SPARE_ROWS // 2  # of one draft, beyond the text
ONE_TO_ONE = 0.999  # agreement from which both tokenizers cut text alike: the same merges under other ids
BY_VOCABULARY = 0.95  # agreement from which a draft begins token by token: n such guesses are cut as the target would in agreement^n; text costs a step


@dataclass(slots=True)
class _Draft:
    """One request's draft while it grows: a tree of the target's tokens, or a chain of them that goes on as text in the drafter's own tokens."""

    tree: GrowingTree
    text: TextDraft | None = None

    @property
    def request(self) -> DraftRequest:
        return self.tree.request

    @property
    def depth(self) -> int:
        return self.tree.budget.depth

    @property
    def is_done(self) -> bool:
        return self.tree.is_done if self.text is None else self.text.is_done

    @property
    def is_chain(self) -> bool:
        """So far, whatever it may become."""
        return self.tree.depth == 0 or self.tree.budget.width == 1


class CrossVocabulary:
    """Drafts for a target with another tokenizer, level by level; all requests advance together, one pass a level.

    The drafter reads the request's text in its own tokens. Token by token ("vocabulary") its logits, restricted to the shared tokens,
    become a row of the target's vocabulary, which is drawn from with the request's parameters and noise: a chain or a tree. By text ("text") it writes on in its own
    tokens, which are decoded and cut by the target's tokenizer behind the known text; shared tokens are drawn with their noise there too.
    "auto" goes by `VocabularyPair.agreement`, measured at load: from `BY_VOCABULARY` up a draft begins token by token and goes on by text from
    where the drafter likes a token best that is not shared; below, all of it is text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        context: DrafterContext,
        name: str = "cross_vocabulary",
        method: Method = "auto",
    ) -> None:
        if method not in METHODS:
            raise InvalidInputError("method", method, f"give one of {', '.join(METHODS)}")
        if context.tokenizer is None:
            raise ModelLoadError(f"drafter={name!r} has a tokenizer and the target none, so that nobody knows which tokens they share: give LLM(tokenizer=...)")
        self.name = name
        self.method = method
        self._context = replace(context, noise=context.noise.on(model.device))
        prepare_layers(model)
        self._model = causal_model(model, min_rows=1, capture_rows=CAPTURED_ROWS)
        self.vocabularies = VocabularyPair(
            Vocabulary.of(context.tokenizer, context.vocab_size, context.end_token_ids),
            Vocabulary.of(tokenizer, self._model.vocab_size, _end_token_ids(model)),
        )
        if not self.vocabularies.to_target:
            raise ModelLoadError(f"drafter={name!r} shares no token with the target, not even letters: choose a drafter for the same script")
        # from the drafter's row to the target's: what stands where, and what is not shared
        self._sources = torch.zeros(context.vocab_size, dtype=torch.int64)
        self._sources[self.vocabularies.shared_target_ids] = self.vocabularies.shared_draft_ids
        self._sources = self._sources.to(model.device)
        self._unshared = torch.ones(context.vocab_size, dtype=torch.bool)
        self._unshared[self.vocabularies.shared_target_ids] = False
        self._unshared = self._unshared.to(model.device)
        self._one_to_one = self.vocabularies.agreement >= ONE_TO_ONE
        self._max_len: int = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", context.max_model_len)
        if isinstance(self._model, PagedModel):
            draft_memory(self._model, context.max_num_tokens)
        self._cost = None if context.target is None else PassCost.measure(self._model, self._max_len)
        self._cache = RewoundCache(self._model)
        self._known: dict[int, KnownText] = {}

    @classmethod
    def load(
        cls, source: str | PreTrainedModel, context: DrafterContext, tokenizer: PreTrainedTokenizerBase | None = None, method: Method = "auto"
    ) -> CrossVocabulary:
        """From a folder, a hub id or a loaded model, with its own tokenizer where none is given.

        Raises ModelLoadError where a tokenizer is missing on one side, or the two have no token in common.
        """
        name = "cross_vocabulary" if isinstance(source, PreTrainedModel) else shown_name(source)
        tokenizer = own_tokenizer(source) if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ModelLoadError(f"drafter={name!r} has no tokenizer, so that nobody knows which tokens it shares with the target: copy its tokenizer.json beside it")
        if isinstance(source, PreTrainedModel):
            check_class(source, "drafter")
            return cls(shared_copy(source), tokenizer, context, name, method)
        model = load_model(source, context.dtype, context.device)
        check_class(model, str(source))
        return cls(model, tokenizer, context, name, method)

    @property
    def model(self) -> CausalModel:
        """The model that drafts, for whoever measures it."""
        return self._model

    @property
    def begins_by_text(self) -> bool:
        """Whether drafts are text from their first token on."""
        return self.method == "text" or (self.method == "auto" and self.vocabularies.agreement < BY_VOCABULARY)

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        drafts = [_Draft(GrowingTree(request, self._affordable(request, most))) for request, most in zip(requests, budget, strict=True)]
        active = [draft for draft in drafts if draft.depth > 0]
        segments = [self._catch_up(draft.request) for draft in active]
        while active:
            logits = self._cache.forward(segments, [len(draft.tree.frontier) if draft.text is None else 1 for draft in active])
            fed = self._grow(active, logits)
            going = [(draft, token_id) for draft, token_id in zip(active, fed, strict=True) if not draft.is_done]
            active = [draft for draft, _ in going]
            segments = [
                self._next(draft.tree) if draft.text is None else self._cache.next(draft.request.request_id, token_id) for draft, token_id in going
            ]
        return [self._tree(draft) for draft in drafts]

    def draft_seconds(self, num_requests: int, budget: DraftBudget) -> float:
        """Of one call; text takes one level more to end a token of the target's."""
        width, levels = (1, budget.depth + 1) if budget and self.begins_by_text else (budget.width, budget.depth)
        return levels_seconds(self._cost, num_requests, levels, width, first_rows=2)

    def _affordable(self, request: DraftRequest, budget: DraftBudget) -> DraftBudget:
        """Reads what is new in the request's text; no depth where nothing is asked, or nothing can be drafted behind this text."""
        if not budget:
            return DraftBudget(0)
        known = self._known.get(request.request_id)
        if known is None:
            known = self._known[request.request_id] = KnownText.of(request, self.vocabularies, self._one_to_one)
        known.num_same = min(known.num_same, known.text.read(request.token_ids))
        depth = min(budget.depth, self._max_len - len(known.text.token_ids) - MORE_STEPS, MAX_ROWS - MORE_STEPS)
        if depth <= 0 or not known.text.token_ids or not self._cache.make_room(request.request_id, len(known.text.token_ids)):
            return DraftBudget(0)
        return replace(budget, depth=depth, width=budget.width if depth * budget.width <= MAX_ROWS else 1)

    def _catch_up(self, request: DraftRequest) -> Segment:
        """The rows of the text that the cache lacks."""
        known = self._known[request.request_id]
        segment = self._cache.catch_up(request.request_id, known.text.token_ids, known.num_same)
        known.num_same = len(known.text.token_ids)
        return segment

    def _grow(self, drafts: Sequence[_Draft], logits: torch.Tensor) -> list[int]:
        """Adds a level to each draft; for text the drafter's token that the next pass begins with, else -1."""
        fed = [-1] * len(drafts)
        trees: list[GrowingTree] = []
        tree_rows: list[int] = []
        row = 0
        favourites = logits.argmax(dim=-1).tolist()
        for index, draft in enumerate(drafts):
            if self._turns_to_text(draft, favourites[row]):
                draft.text = TextDraft(self._known[draft.request.request_id], draft.request, draft.tree.token_ids, draft.tree.budget, self._context)
            if draft.text is not None:
                fed[index] = draft.text.extend(logits[row])
                row += 1
                continue
            trees.append(draft.tree)
            tree_rows += range(row, row + len(draft.tree.frontier))
            row += len(draft.tree.frontier)
        if trees:
            self._grow_trees(trees, logits[tree_rows])
        return fed

    def _turns_to_text(self, draft: _Draft, favourite: int) -> bool:
        """At the first token, or where the drafter likes one best that the target lacks. Laws are laws of the target's tokens: such drafts go on."""
        params = draft.request.params
        if draft.text is not None or not draft.is_chain:
            return False
        if self.begins_by_text:
            return True
        if self.method == "vocabulary" or (params.acceptance == "block" and not params.is_greedy):
            return False
        return favourite not in self.vocabularies.to_target

    def _grow_trees(self, trees: Sequence[GrowingTree], rows: torch.Tensor) -> None:
        ours = rows.index_select(1, self._sources).masked_fill_(self._unshared, float("-inf"))
        places = [place for tree in trees for place in tree.places()]
        found = iter(guesses(places, ours, max(tree.budget.width for tree in trees), self._context))
        for tree in trees:
            # of a row on which nothing shared was left the guess may be any token
            tree.grow([[each for each in next(found) if self.vocabularies.to_draft[each.token_id] >= 0] for _ in tree.frontier])

    def _next(self, tree: GrowingTree) -> Segment:
        """The frontier's rows. A chain goes on where the text ends."""
        tokens = [self.vocabularies.to_draft[tree.token_ids[node]] for node in tree.frontier]
        if tree.budget.width == 1:
            return self._cache.next(tree.request.request_id, tokens[0])
        kv = self._cache.sequence(tree.request.request_id)
        return tree.branch_rows(kv, tokens, kv.num_tokens)

    def _tree(self, draft: _Draft) -> TokenTree:
        """In the target's tokens."""
        tree = draft.tree.tree()
        if draft.text is None:
            return tree
        token_ids, scores = draft.text.told()
        return TokenTree.chain([*tree.token_ids, *token_ids][: draft.depth], [*tree.scores, *scores][: draft.depth])

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the next propose reads the request's tokens

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._known.pop(request_id, None)
            self._cache.free(request_id)


def _end_token_ids(model: PreTrainedModel) -> list[int]:
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    return list(end) if isinstance(end, (list, tuple)) else [] if end is None else [end]


__all__ = ["METHODS", "CrossVocabulary", "Method"]
