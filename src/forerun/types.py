"""What every layer speaks: drafts, verdicts, errors, results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

FinishReason = Literal["stop", "length", "error"]
TokenKind = Literal["accepted", "recovered", "bonus", "plain"]


class ForerunError(Exception):
    """Base of every error that forerun raises on purpose."""


class InvalidInputError(ForerunError, ValueError):
    """A value that cannot be honoured. The message names the field, the value and the remedy."""

    def __init__(self, name: str, value: object, remedy: str) -> None:
        self.field = name
        shown = repr(value)
        super().__init__(f"{name}={shown if len(shown) <= 80 else shown[:77] + '...'}: {remedy}")


class ModelLoadError(ForerunError):
    """A model folder, hub id or class that cannot be used; the message says why and what to do."""


class RequestFailedError(ForerunError):
    """One request broke while it ran (NaN logits, say); its neighbours went on."""


class OverloadedError(ForerunError):
    """More requests wait than may: come back later."""


class UnavailableError(ForerunError):
    """The engine takes no requests: it is draining, stopped, or hangs in a step."""


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A draft: guesses for the next tokens of one request. An empty tree is plain decoding.

    Node `i` carries `token_ids[i]`; `parents[i]` is an earlier node, or -1 for a child of the last known token.
    `scores` are the drafter's probabilities of each node behind its parent (or empty): they decide what is worth verifying, never what is
    accepted. `sources` (or empty) name the drafter of each node.
    `laws` (or empty) are for `acceptance="block"`: `laws[i]` is the probability row `[vocab_size]` that node `i` was drawn from, or None for
    a guess that nothing was drawn for. Siblings stand in the order in which they were drawn; those that share one tensor were drawn
    from it without replacement. Whether a drawn node is in the draft must not depend on what was drawn (algorithm: non-anticipation).
    """

    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    laws: tuple[torch.Tensor | None, ...] = field(default=(), compare=False)
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.parents):
            raise InvalidInputError("TokenTree.parents", self.parents, f"give {len(self.token_ids)} parents, one a token")
        if self.scores and len(self.scores) != len(self.token_ids):
            raise InvalidInputError("TokenTree.scores", self.scores, "give one score a token, or none at all")
        if self.laws and len(self.laws) != len(self.token_ids):
            raise InvalidInputError("TokenTree.laws", f"{len(self.laws)} rows", "give one row or None a token, or none at all")
        if self.sources and len(self.sources) != len(self.token_ids):
            raise InvalidInputError("TokenTree.sources", self.sources, "give one name a token, or none at all")
        if any(not -1 <= parent < node for node, parent in enumerate(self.parents)):
            raise InvalidInputError("TokenTree.parents", self.parents, "each parent must stand before its child, -1 is the root")

    @classmethod
    def chain(cls, token_ids: Sequence[int], scores: Sequence[float] = (), laws: Sequence[torch.Tensor | None] = ()) -> TokenTree:
        """A tree with one branch."""
        return cls(tuple(token_ids), tuple(range(-1, len(token_ids) - 1)), tuple(scores), tuple(laws))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @property
    def depths(self) -> tuple[int, ...]:
        """Of each node: 0 for a child of the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """Nodes on the longest branch: the most tokens that this draft can get accepted."""
        return max(self.depths, default=-1) + 1

    @property
    def num_leaves(self) -> int:
        """Branches: nodes without a child."""
        return len(self) - len({parent for parent in self.parents if parent >= 0})

    def named(self, source: str) -> TokenTree:
        """The same tree with its nodes from this drafter, where they are from none yet."""
        return self if self.sources or not self.token_ids else replace(self, sources=(source,) * len(self))

    def child(self, node: int, token_id: int) -> int | None:
        """The child of `node` (-1: the root) that carries `token_id`, if one does."""
        for candidate in range(node + 1, len(self.token_ids)):
            if self.parents[candidate] == node and self.token_ids[candidate] == token_id:
                return candidate
        return None

    def path_to(self, node: int) -> list[int]:
        """Token ids from the root's child down to `node`; empty for the root."""
        tokens: list[int] = []
        while node >= 0:
            tokens.append(self.token_ids[node])
            node = self.parents[node]
        return tokens[::-1]

    def first(self, num_nodes: int) -> TokenTree:
        """The first `num_nodes` nodes; always a tree, because parents stand before children."""
        if num_nodes >= len(self):
            return self
        return self._take(range(num_nodes))

    def where(self, keeps: Callable[[int], bool]) -> TokenTree:
        """Without the nodes that `keeps` refuses, and without what hangs on those. It is asked about no node behind a refused one."""
        kept: dict[int, None] = {-1: None}
        for node, parent in enumerate(self.parents):
            if parent in kept and keeps(node):
                kept[node] = None
        return self if len(kept) == len(self) + 1 else self._take(list(kept)[1:])

    def depth_first(self) -> TokenTree:
        """The same tree with every branch's nodes side by side; siblings keep their order."""
        if self.is_chain:
            return self
        children: list[list[int]] = [[] for _ in range(len(self) + 1)]
        for node, parent in enumerate(self.parents):
            children[parent].append(node)  # the root's are the last list
        order: list[int] = []
        waiting = children[-1][::-1]
        while waiting:
            order.append(node := waiting.pop())
            waiting.extend(children[node][::-1])
        return self if order == list(range(len(self))) else self._take(order)

    def _take(self, nodes: Sequence[int]) -> TokenTree:
        """The tree of these nodes, in this order; each parent is among them, before its children."""
        place = {-1: -1} | {node: index for index, node in enumerate(nodes)}
        return TokenTree(
            tuple(self.token_ids[node] for node in nodes),
            tuple(place[self.parents[node]] for node in nodes),
            tuple(self.scores[node] for node in nodes if self.scores),
            tuple(self.laws[node] for node in nodes if self.laws),
            tuple(self.sources[node] for node in nodes if self.sources),
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of the target before any processing: of the token that is there, and of the most likely ones."""

    logprob: float
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class Verified:
    """What one request keeps of one step: `path` are the accepted tree nodes, `token_ids` those tokens and the target's own.

    With an `error` they are the tokens before it: the request ends with the error, unless one of them ends it first.
    Not `is_finite`: some row, accepted or not, holds NaN or infinity. `tree` is the draft, `logits` `[1 + len(tree), vocab_size]` the target's rows before any processing: behind the last known token, then
    behind each node. They live until the next step.
    """

    path: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: RequestFailedError | None = None
    is_finite: bool = True
    tree: TokenTree = field(default_factory=TokenTree, compare=False)
    logits: torch.Tensor | None = field(default=None, compare=False)

    @property
    def num_accepted_tokens(self) -> int:
        """Accepted draft tokens; the target's own token is not counted."""
        return len(self.path)

    def kind(self, row: int) -> TokenKind:
        """Of token `row` of this step."""
        if row < len(self.path):
            return "accepted"
        if not self.tree:
            return "plain"
        last = self.path[-1] if self.path else -1
        return "recovered" if last in self.tree.parents else "bonus"


@dataclass(slots=True)
class SpeculationStats:
    """Figures of one request, or of many added up. Times in seconds, shared out by rows where requests ran together.

    `predicted_seconds` is what the cost model expected of drafting, passes and the rest; `plain_seconds` what it expects that plain decoding of the
    same tokens in the same batches would have taken. `decisions` counts steps by what was decided about drafts, and why.
    """

    num_target_passes: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_output_tokens: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    other_seconds: float = 0.0
    accepted_per_position: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    predicted_seconds: float = 0.0
    plain_seconds: float = 0.0
    decisions: Counter[str] = field(default_factory=Counter)
    drafted_by: Counter[str] = field(default_factory=Counter)  # tokens by drafter
    accepted_by: Counter[str] = field(default_factory=Counter)

    @property
    def acceptance_length(self) -> float:
        """Tokens per target pass, the target's own included; 1.0 is plain decoding."""
        return self.num_output_tokens / self.num_target_passes if self.num_target_passes else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    def count_accepted(self, num_accepted: int) -> None:
        self.num_accepted_tokens += num_accepted
        missing = num_accepted - len(self.accepted_per_position)
        self.accepted_per_position.extend([0] * max(0, missing))
        for position in range(num_accepted):
            self.accepted_per_position[position] += 1

    def add(self, other: SpeculationStats) -> None:
        """Adds another request's figures to these."""
        longer = max(len(self.accepted_per_position), len(other.accepted_per_position))
        both = [stats.accepted_per_position + [0] * (longer - len(stats.accepted_per_position)) for stats in (self, other)]
        self.accepted_per_position = [mine + theirs for mine, theirs in zip(*both, strict=True)]
        for name in (
            "num_target_passes", "num_draft_tokens", "num_accepted_tokens", "num_output_tokens",
            "draft_seconds", "verify_seconds", "other_seconds", "prefill_seconds", "predicted_seconds", "plain_seconds",
            "decisions", "drafted_by", "accepted_by",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        return {
            "num_target_passes": self.num_target_passes,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "num_output_tokens": self.num_output_tokens,
            "accepted_per_position": list(self.accepted_per_position),
            "acceptance_length": round(self.acceptance_length, 4),
            "acceptance_rate": round(self.acceptance_rate, 4),
            "draft_seconds": round(self.draft_seconds, 6),
            "verify_seconds": round(self.verify_seconds, 6),
            "other_seconds": round(self.other_seconds, 6),
            "prefill_seconds": round(self.prefill_seconds, 6),
            "predicted_seconds": round(self.predicted_seconds, 6),
            "plain_seconds": round(self.plain_seconds, 6),
            "decisions": dict(self.decisions),
            "drafted_by": dict(self.drafted_by),
            "accepted_by": dict(self.accepted_by),
        }


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """One token as it leaves the engine. `text` may be empty while a character or a stop string is incomplete.

    `kind`: a drafter guessed it (`accepted`), the target's own where the draft was wrong (`recovered`) or right to its end (`bonus`), or in a
    step without a draft (`plain`). `drafter` names who guessed it, `logprobs` are there where they were asked for.
    """

    token_id: int
    text: str
    kind: TokenKind
    finish_reason: FinishReason | None = None
    drafter: str | None = None
    logprobs: TokenLogprobs | None = None

    @property
    def accepted(self) -> bool:
        return self.kind == "accepted"


@dataclass(slots=True)
class RequestTimes:
    """When things happened to a request, by `time.perf_counter`; None: not yet. `num_cached_tokens` of its prompt were in the cache already."""

    arrived: float = field(default_factory=time.perf_counter)
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` continuations of a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    seed: int
    stats: SpeculationStats
    logprobs: list[TokenLogprobs] | None = None
    stop_reason: str | int | None = None
    times: RequestTimes = field(default_factory=RequestTimes, compare=False)


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """How full an engine is, and what its cache did so far. `kv_cache_usage` is the share of the cache that requests hold."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0  # tokens of prompts that were looked for in the cache
    prefix_cache_hits: int = 0  # and found
    # of all steps so far; differences of two snapshots give rates
    num_steps: int = 0
    num_rows: int = 0  # of the target's passes
    num_output_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    step_seconds: float = 0.0
    draft_seconds: float = 0.0
    plain_seconds: float = 0.0  # what plain decoding of the same tokens would have taken, by the cost model
    decisions: dict[str, int] = field(default_factory=dict)
    num_drafts: int = 0  # one a step of a request that had one
    accepted_per_position: tuple[int, ...] = ()
    drafted_by: dict[str, int] = field(default_factory=dict)  # tokens by drafter
    accepted_by: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamedUpdate:
    """What one step brought to continuation `index` of a prompt; `output` is whole with the last of it."""

    index: int
    tokens: tuple[StreamedToken, ...]
    output: CompletionOutput | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its continuations, or the error that ended it. Reading a result of a failed request raises that error.

    `prompt_logprobs`, where asked for: one entry a token of the prompt, None for the first, which nothing stands before.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    completions: list[CompletionOutput] = field(default_factory=list)
    error: ForerunError | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    @property
    def outputs(self) -> list[CompletionOutput]:
        if self.error is not None:
            raise self.error
        return self.completions

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return "error" if self.error is not None else self.completions[0].finish_reason

    @property
    def seed(self) -> int:
        return self.outputs[0].seed

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return self.outputs[0].logprobs

    @property
    def stats(self) -> SpeculationStats:
        return self.outputs[0].stats
