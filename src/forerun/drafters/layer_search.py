"""Which of a target's own layers draft best for it: a short greedy search on text that the target wrote itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from forerun.kv_cache.protocol import OwnSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.choice import beside
from forerun.models.exactness import cache_folder
from forerun.models.fingerprint import fingerprint
from forerun.models.layer_subset import decoder_layers, num_weights, with_layers
from forerun.prompts import bundled_prompts, spread
from forerun.sampling.noise import GumbelNoise

NUM_TEXTS = 4
PROMPT_TOKENS = 24
OWN_TOKENS = 24  # of each text, sampled at temperature 1
TEXT_SECONDS = 2.0  # for writing the texts, and
SEARCH_SECONDS = 3.0  # for trying layers; a slow model gets fewer tokens and fewer tries
LONGEST_DRAFT = 8
MIN_SPEEDUP = 1.05  # a prediction below this is no reason to draft


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """`overlap` is the mean of `sum min(p, q)` over the texts, p the target's law and q that of its `layers`; `speedup` is what it predicts."""

    layers: tuple[int, ...]
    overlap: float
    speedup: float

    @property
    def pays(self) -> bool:
        return self.speedup >= MIN_SPEEDUP


def predicted_speedup(overlap: float, cost: float) -> float:
    """Tokens of a step over its cost, at the best draft length: each guess costs `cost` target passes and survives with chance `overlap`."""
    best, expected = 1.0, 1.0
    for length in range(1, LONGEST_DRAFT + 1):
        expected += overlap**length
        best = max(best, expected / (1.0 + length * cost))
    return best


def find_layers(target: CausalModel, tokenizer: PreTrainedTokenizerBase | None, cache: Path | None = None) -> LayerChoice:
    """The layers that promise the highest speedup. Remembered in `cache` for this model on this machine."""
    cache = cache_folder() if cache is None else cache
    facts = ("layers", NUM_TEXTS, PROMPT_TOKENS, OWN_TOKENS, LONGEST_DRAFT, tokenizer is not None)
    remembered = cache / f"layers-{fingerprint(target.model, target.model.config, *facts)}.json"
    try:
        known: dict[str, Any] = json.loads(remembered.read_text())
        return LayerChoice(tuple(known["layers"]), known["overlap"], known["speedup"])
    except (OSError, ValueError, TypeError, KeyError):
        found = _Search(target, tokenizer).run()
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps(asdict(found)))
    except OSError:
        pass  # a read-only home costs a search at each load, nothing else
    return found


class _Search:
    """Drops the layers that change the hidden state least, then adds, drops and swaps single ones while that helps and time is left."""

    @torch.inference_mode()
    def __init__(self, target: CausalModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._target = target
        _, layers = decoder_layers(target.model)
        self._num_layers = len(layers)
        head = target.model.get_output_embeddings()
        self._head_cost = 0.0 if head is None else num_weights(head) * self._num_layers / max(1, num_weights(layers))  # in layers
        self._texts = _own_texts(target, tokenizer)
        self._tried: dict[tuple[int, ...], LayerChoice] = {}

    @torch.inference_mode()
    def run(self) -> LayerChoice:
        everything = tuple(range(self._num_layers))
        if self._num_layers < 2:
            return LayerChoice(everything, 1.0, predicted_speedup(1.0, 1.0))
        self._until = time.perf_counter() + SEARCH_SECONDS
        influence, self._laws = self._influence_and_laws()
        by_influence = sorted(everything, key=lambda layer: influence[layer])
        best = LayerChoice(everything, 1.0, predicted_speedup(1.0, 1.0))
        for size in sorted(range(1, self._num_layers), key=lambda size: abs(2 * size - self._num_layers)):  # a slow model comes no further than half
            best = self._better(best, tuple(sorted(by_influence[-size:])))
        improved = True
        while improved:
            before = best
            for layers in self._neighbours(best.layers, by_influence):
                best = self._better(best, layers)
            improved = best != before and time.perf_counter() < self._until
        return best

    def _better(self, best: LayerChoice, layers: tuple[int, ...]) -> LayerChoice:
        """The better of both; what was not tried in time is not."""
        if layers not in self._tried and time.perf_counter() < self._until:
            overlap = self._overlap(layers)
            cost = (len(layers) + self._head_cost) / (self._num_layers + self._head_cost)
            self._tried[layers] = LayerChoice(layers, overlap, predicted_speedup(overlap, cost))
        found = self._tried.get(layers, best)
        return found if found.speedup > best.speedup else best

    @staticmethod
    def _neighbours(layers: tuple[int, ...], by_influence: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """One layer fewer, one more, one for another: the least influential leave first, the most influential come first."""
        inside = [layer for layer in by_influence if layer in layers]
        outside = [layer for layer in reversed(by_influence) if layer not in layers]
        for gone in inside if len(layers) > 1 else ():
            yield tuple(layer for layer in layers if layer != gone)
        for come in outside:
            yield tuple(sorted((*layers, come)))
        for gone in inside:
            for come in outside:
                yield tuple(sorted((*(layer for layer in layers if layer != gone), come)))

    def _influence_and_laws(self) -> tuple[list[float], torch.Tensor]:
        """How far each layer turns the hidden state (1 - cosine, mean over rows), and the target's laws `[num_rows, vocab_size]` of the texts."""
        influence = [0.0] * self._num_layers
        hooks = [
            layer.register_forward_hook(_turning(influence, index), with_kwargs=True)
            for index, layer in enumerate(decoder_layers(self._target.model)[1])
        ]
        try:
            with self._target.module_by_module():
                rows = [self._target.forward([Segment(kv.copy(), tokens[start:], start)]) for tokens, start, kv in self._texts]
        finally:
            for hook in hooks:
                hook.remove()
        return influence, torch.cat(rows).float().softmax(dim=-1)

    def _overlap(self, layers: tuple[int, ...]) -> float:
        """Of the first guess behind each token: later tokens first, so that every row reads the target's own keys before it, as in use."""
        model = beside(self._target, with_layers(self._target.model, layers), capture_rows=1)
        total = count = 0.0
        low = 0
        for tokens, start, kv in self._texts:
            own = kv.copy()
            segments = [Segment(own, [tokens[position]], position) for position in reversed(range(start, len(tokens)))]
            with model.module_by_module():  # each subset is tried once
                found = model.forward(segments)
            found = found.flip(0).float().softmax(dim=-1)
            total += float(torch.minimum(found, self._laws[low : low + len(found)]).sum())
            count += len(found)
            low += len(found)
        return total / count if total == total else 0.0


def _turning(influence: list[float], index: int) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        influence[index] += 1.0 - float(torch.cosine_similarity(before.float(), after.float(), dim=-1).mean())

    return hook


def _own_texts(target: CausalModel, tokenizer: PreTrainedTokenizerBase | None) -> list[tuple[list[int], int, OwnSequence]]:
    """Token ids, where the target's own begin, and the keys and values of all of them, a text each."""
    generator = torch.Generator().manual_seed(0)
    if tokenizer is None:
        texts = torch.randint(target.vocab_size, (NUM_TEXTS, 2), generator=generator).tolist()
    else:
        encoded = [tokenizer(prompt.text).input_ids for prompt in spread(bundled_prompts(), NUM_TEXTS)]
        texts = [[token_id for token_id in text if token_id < target.vocab_size][:PROMPT_TOKENS] or [0] for text in encoded]
    caches = [target.own_sequence(PROMPT_TOKENS + OWN_TOKENS) for _ in texts]
    starts = [len(text) - 1 for text in texts]
    for text, kv in zip(texts, caches, strict=True):
        if len(text) > 1:
            target.prefill(Segment(kv, text[:-1], 0))
            kv.advance(len(text) - 1)
    noise = GumbelNoise(target.vocab_size, target.device)
    began = time.perf_counter()
    for _ in range(OWN_TOKENS):
        logits = target.forward([Segment(kv, text[-1:], len(text) - 1) for text, kv in zip(texts, caches, strict=True)])
        for index, (text, kv) in enumerate(zip(texts, caches, strict=True)):
            kv.advance(1)
            text.append(int((logits[index].float() + noise.row(index, len(text))).argmax()))
        if time.perf_counter() - began > TEXT_SECONDS:
            break
    return [(text[:-1], start, kv) for text, start, kv in zip(texts, starts, caches, strict=True)]


__all__ = ["LayerChoice", "find_layers", "predicted_speedup"]
