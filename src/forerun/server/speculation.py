"""What speculation did for a request, in vLLM's wire shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forerun.types import SpeculationStats, StreamedToken

DRAFTED = ("drafted", "forced")  # decisions that put a draft before the target


def speculative_decoding(each: Iterable[SpeculationStats]) -> dict[str, Any]:
    """Of all continuations together."""
    stats = SpeculationStats()
    for one in each:
        stats.add(one)
    return {"speculative_decoding": report(stats)}


def report(stats: SpeculationStats) -> dict[str, Any]:
    """`acceptance_histogram[k]` counts the steps with a draft in which k tokens of it were accepted."""
    per_position = stats.accepted_per_position
    skipped = sum(count for reason, count in stats.decisions.items() if reason not in DRAFTED)
    num_spec_steps = max(stats.num_target_passes - skipped, per_position[0] if per_position else 0)
    reached = [num_spec_steps, *per_position, 0]
    took = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    return {
        "mean_acceptance_length": 1 + stats.num_accepted_tokens / num_spec_steps if num_spec_steps else 1.0,
        "draft_acceptance_rate": stats.acceptance_rate,
        "acceptance_histogram": [here - further for here, further in zip(reached, reached[1:], strict=False)],
        "num_spec_steps": num_spec_steps,
        "num_accepted_draft_tokens": stats.num_accepted_tokens,
        "num_draft_tokens": stats.num_draft_tokens,
        "num_spec_tokens": len(per_position),
        "decisions": dict(stats.decisions),
        "num_skipped_steps": stats.num_target_passes - num_spec_steps,
        "speedup_estimate": stats.plain_seconds / took if took and stats.plain_seconds else None,
    }


def token_report(tokens: Iterable[StreamedToken]) -> list[dict[str, Any]]:
    """How each token came."""
    return [
        {
            "token_id": token.token_id,
            "text": token.text,
            "kind": token.kind,
            "drafter": token.drafter,
            "logprob": None if token.logprobs is None else token.logprobs.logprob,
        }
        for token in tokens
    ]
