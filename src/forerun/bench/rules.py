"""Rules of acceptance side by side: how much of a drawn chain each lets through, with coins and noise integrated out.

For comparison only: what is emitted is decided in `sampling/`. Of these rules, requests may choose "match" and "block".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from forerun.types import InvalidInputError

MATCH = "match"  # coupled draft: the drafter draws with the target's noise
MATCH_ARGMAX = "match, argmax draft"
TOKEN = "token by token"
BLOCK = "block"
BOUND = "bound"  # no rule for one drawn path accepts more
RULES = (MATCH, MATCH_ARGMAX, TOKEN, BLOCK, BOUND)

SYNTHETIC_VOCAB = 5
SYNTHETIC_DECAY = 0.4  # of the target's probabilities, token to token
_DIGITS = 12  # weights that agree to so many are one


def survival(target_laws: torch.Tensor, draft_laws: torch.Tensor, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """By rule: the chance `[num_tokens]` that the draft is accepted up to and with each token, given the tokens so far.

    `target_laws`, `draft_laws` `[num_tokens, vocab_size]`, `token_ids` `[num_tokens]` drawn from the latter. The mean over drafts is the rule's own, so
    one draft serves all rules: coupled match as `coincidence` says; token by token min(1, p / q) (arXiv 2211.17192); block P_i = min(1, P_{i-1} p / q)
    (arXiv 2403.10444); the bound, 1 - TV of the joint laws, min(1, product of p / q). `MATCH_ARGMAX` has another draft: see `argmax_survival`.
    """
    p, q = (laws.double().gather(1, token_ids[:, None])[:, 0] for laws in (target_laws, draft_laws))
    ratio = p / q
    block, weight = [], 1.0
    for each in ratio.tolist():
        weight = min(1.0, weight * each)
        block.append(weight)
    return {
        MATCH: coincidence(target_laws, draft_laws, token_ids).cumprod(0),
        TOKEN: ratio.clamp(max=1.0).cumprod(0),
        BLOCK: torch.tensor(block, dtype=torch.float64),
        BOUND: ratio.cumprod(0).clamp(max=1.0),
    }


def coincidence(target_laws: torch.Tensor, draft_laws: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """The chance `[num_tokens]` that the target draws `token_ids` too, where the drafter drew them with the same Gumbel noise.

    p(x) / sum over y of max(p(y) q(x), q(y) p(x)): over all draws it is the Jaccard index of the two laws (arXiv 1809.04052).
    """
    p, q = (laws.double().gather(1, token_ids[:, None]) for laws in (target_laws, draft_laws))
    return p[:, 0] / torch.maximum(target_laws.double() * q, draft_laws.double() * p).sum(dim=1)


def argmax_survival(target_laws: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """The same for match on a draft of the drafter's best tokens: the target draws each of them with its own probability."""
    return target_laws.double().gather(1, token_ids[:, None])[:, 0].cumprod(0)


def overlap(target_law: torch.Tensor, draft_law: torch.Tensor) -> float:
    """1 - TV of two laws `[vocab_size]`: the best that any rule for a single draft can do."""
    return float(torch.minimum(target_law.double(), draft_law.double()).sum())


def coupling_floor(share: float) -> float:
    """What match of a coupled draft accepts at least where the overlap is `share`: (1 - TV) / (1 + TV) (Daliri et al., arXiv 2408.07978)."""
    return share / (2.0 - share)


def synthetic_pair(total_variation: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A target law and a draft law `[SYNTHETIC_VOCAB]` at this distance, the same at every position: the drafter mixes in the target's law reversed.

    Raises InvalidInputError where not even the reversed law is so far off.
    """
    target = SYNTHETIC_DECAY ** torch.arange(SYNTHETIC_VOCAB, dtype=torch.float64)
    target /= target.sum()
    furthest = 1.0 - overlap(target, target.flip(0))
    if not 0 < total_variation <= furthest:
        raise InvalidInputError("total_variation", total_variation, f"give a number over 0 and up to {furthest:.2f}")
    return target, torch.lerp(target, target.flip(0), total_variation / furthest)


def exact_accepted(target_law: torch.Tensor, draft_law: torch.Tensor, num_draft_tokens: int) -> dict[str, float]:
    """By rule: the expected accepted tokens where every position has these two laws. Exact: a sum over all drafts, equal ratios taken together."""
    vocab_size = len(target_law)
    same = (target_law.expand(vocab_size, -1), draft_law.expand(vocab_size, -1))
    shares = {
        MATCH: float(draft_law @ coincidence(*same, torch.arange(vocab_size))),
        MATCH_ARGMAX: float(target_law[draft_law.argmax()]),
        TOKEN: overlap(target_law, draft_law),
    }
    ratios, chances = (target_law / draft_law).tolist(), draft_law.tolist()
    found = {rule: sum(share**length for length in range(1, num_draft_tokens + 1)) for rule, share in shares.items()}
    return found | {rule: _walk(ratios, chances, num_draft_tokens, most) for rule, most in ((BLOCK, 1.0), (BOUND, math.inf))}


def _walk(ratios: Sequence[float], chances: Sequence[float], num_steps: int, most: float) -> float:
    """Sum over the steps of E[min(1, weight)], where a step multiplies the weight by a ratio and cuts it at `most`."""
    weights, total = {1.0: 1.0}, 0.0
    for _ in range(num_steps):
        after: defaultdict[float, float] = defaultdict(float)
        for weight, reached in weights.items():
            for ratio, chance in zip(ratios, chances, strict=True):
                after[float(f"{min(most, weight * ratio):.{_DIGITS}g}")] += reached * chance
        weights = dict(after)
        total += sum(reached * min(1.0, weight) for weight, reached in weights.items())
    return total
