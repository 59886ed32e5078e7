"""Rows that are drawn before anybody looks at them give the tokens of rows that are drawn when the walk comes to them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EOS, VOCAB_SIZE

from forerun import SamplingParams
from forerun.sampling.drawn_ahead import RowToDraw, draw_ahead, only_scales
from forerun.sampling.noise import GumbelNoise, row_key
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw

ASKED = {
    "greedy": {"temperature": 0.0},
    "greedy, penalties": {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "bias": {"logit_bias": {7: 4.0}, "temperature": 1.3},
    "min_tokens": {"min_tokens": 9, "logit_bias": {EOS: 50.0}},
    "everything": {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "presence_penalty": 0.5, "repetition_penalty": 1.2},
}
PROMPT, OUTPUT, PATHS = [5, 6, 7], [8, 9], [(), (10,), (10, 11), (12,)]


def rows_for(params):
    return [RowToDraw(params, 42, PROMPT, OUTPUT, path, (EOS,)) for path in PATHS]


def logits_for(seed):
    return 3 * torch.randn(len(PATHS), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("asked", ASKED)
def test_tokens_are_those_of_one_row_at_a_time(asked):
    params, noise = SamplingParams(seed=42, **ASKED[asked]), GumbelNoise(VOCAB_SIZE)
    for seed in range(20):
        logits = logits_for(seed)
        values, ids, drawn = draw_ahead(logits, rows_for(params), noise)
        assert values == logits.max(dim=-1).values.tolist() and ids == logits.argmax(dim=-1).tolist()
        expected = []
        for row, path in zip(logits, PATHS, strict=True):
            prefix = [*OUTPUT, *path]
            processed = process(row, params, PROMPT, prefix, (EOS,))
            expected.append(draw(processed, None if params.is_greedy else noise.row(42, len(PROMPT) + len(prefix))))
        assert drawn == expected


def test_a_row_is_drawn_alike_alone_and_among_others():
    noise, asked = GumbelNoise(VOCAB_SIZE), [SamplingParams(seed=1, **params) for params in ASKED.values()]
    rows = [row for params in asked for row in rows_for(params)]
    logits = torch.cat([logits_for(seed) for seed in range(len(asked))])
    together = draw_ahead(logits, [*rows[:5], None, *rows[6:]], noise)[2]
    alone = [draw_ahead(logits[index : index + 1], [row], noise)[2][0] for index, row in enumerate(rows)]
    assert together[:5] + together[6:] == alone[:5] + alone[6:] and together[5] == int(logits[5].argmax())


def test_no_number_is_seen_in_its_row():
    logits = logits_for(0)
    logits[2, 17] = float("nan")
    values, _, _ = draw_ahead(logits, rows_for(SamplingParams(temperature=1.0)), GumbelNoise(VOCAB_SIZE))
    assert [value != value for value in values] == [False, False, True, False]


def test_what_only_scales():
    assert [name for name, params in ASKED.items() if only_scales(SamplingParams(**params))] == ["temperature"]
    assert only_scales(SamplingParams()) and not only_scales(SamplingParams(bad_words=["a"]))


def test_noise_by_rows_is_noise_row_by_row():
    """On the CPU up to a vector's tail; a GPU computes each number by itself."""
    noise = GumbelNoise(1000)
    keys = [row_key(seed, position) for seed, position in ((1, 0), (2**63 + 5, 7), (1, 1))]
    rows = noise.rows(torch.tensor(keys))
    assert torch.allclose(rows, torch.stack([noise.row(1, 0), noise.row(2**63 + 5, 7), noise.row(1, 1)]), rtol=1e-6)
    assert noise.on(torch.device("cpu")) is noise


def test_more_rows_than_stand_in_memory_together():
    noise, params = GumbelNoise(VOCAB_SIZE), SamplingParams(temperature=0.9)
    rows = [RowToDraw(params, seed, PROMPT, OUTPUT, (), (EOS,)) for seed in range(70)]
    logits = 3 * torch.randn(70, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    assert draw_ahead(logits, rows, noise)[2] == [draw_ahead(logits[index : index + 1], [row], noise)[2][0] for index, row in enumerate(rows)]
