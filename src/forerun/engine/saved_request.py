"""A request on paper: what another process needs to go on with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from forerun.config import SamplingParams
from forerun.types import InvalidInputError, RequestOutput


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """One continuation as far as it came. `LLM.resume` goes on with the tokens that the uninterrupted run would have written.

    A token depends on the tokens before it, the parameters, the seed and its position alone: that is all there is to save. With
    `acceptance="block"` the text goes on by the same law, but not with the same tokens. Raise `params.max_tokens` (it counts
    all new tokens, the saved ones too) to make a finished text longer.

    Raises InvalidInputError for parameters that cannot be written down or whose past is not in the tokens.
    """

    prompt_token_ids: list[int]
    output_token_ids: list[int]
    params: SamplingParams
    seed: int

    def __post_init__(self) -> None:
        if self.params.n != 1:
            raise InvalidInputError("n", self.params.n, "save each continuation by itself: SavedRequest.of(output, params, index)")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self.params, name) is not None:
                raise InvalidInputError(name, getattr(self.params, name), "those of the saved tokens are gone: leave it out to save or resume")
        if self.params.logits_processors:
            raise InvalidInputError("logits_processors", self.params.logits_processors, "code and its state cannot be written down: leave it out to save or resume")
        if len(self.output_token_ids) > self.params.max_tokens:
            raise InvalidInputError("max_tokens", self.params.max_tokens, f"{len(self.output_token_ids)} tokens are written already: ask for more")

    @classmethod
    def of(cls, output: RequestOutput, params: SamplingParams, index: int = 0) -> SavedRequest:
        """Continuation `index` of a result that was made with `params`."""
        completion = output.outputs[index]
        return cls(list(output.prompt_token_ids), list(completion.token_ids), replace(params, n=1, seed=completion.seed), completion.seed)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> SavedRequest:
        """Raises InvalidInputError for text that `to_json` did not write."""
        try:
            found: dict[str, Any] = json.loads(text)
            params = SamplingParams(**found["params"])
            prompt, output = ([int(token_id) for token_id in found[name]] for name in ("prompt_token_ids", "output_token_ids"))
            return cls(prompt, output, params, int(found["seed"]))
        except InvalidInputError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError("saved request", text, f"give a line that SavedRequest.to_json wrote ({type(error).__name__}: {error})") from error
