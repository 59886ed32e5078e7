"""Passes over a paged memory against passes segment by segment, in float64: what differs by more than the few steps in float32 is no rounding."""

from __future__ import annotations

import random

import pytest
import torch
from tape import TapeRecorder
from tiny_models import VOCAB_SIZE, make_model

from forerun.kernels import kernels_for
from forerun.kv_cache.paged import PagedCache
from forerun.models import exactness
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.paged_model import PagedModel
from forerun.models.recorder import unrecorded

TOKENS = torch.randint(VOCAB_SIZE, (300,), generator=torch.Generator().manual_seed(7)).tolist()
CPU = torch.device("cpu")
EXPERTS = {"qwen2_moe", "deepseek_v3", "gpt_oss"}


def paged(model, recorder=unrecorded, num_blocks=40):
    return PagedModel(model, kernels_for(CPU), lambda: recorder, PagedCache(num_blocks, remembers=False), min_rows=1)


def prefilled(model, start, capacity=300):
    kv = model.own_sequence(capacity)
    if start:
        model.prefill(Segment(kv, TOKENS[:start], 0))
        kv.advance(start)
    return kv


def tree_of(kv, start, size, seed):
    """A random draft of `size` rows, depth first."""
    rng = random.Random(seed)
    depths = [0]
    while len(depths) < size:
        depths.append(rng.randint(1, depths[-1] + 1))
    return Segment(kv, [rng.randrange(VOCAB_SIZE) for _ in depths], start, [start + depth for depth in depths])


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_passes_say_what_passes_segment_by_segment_say(architecture):
    model, other = (make_model(architecture, "fp32") for _ in range(2))
    if architecture not in EXPERTS:  # which have no float64
        model, other = model.double(), other.double()
    tape = TapeRecorder()
    found, reference = paged(model, tape), CausalModel(other)
    for seed, starts in enumerate([(60,), (120, 64, 0)]):
        segments = [
            [tree_of(prefilled(each, start), start, size, 10 * seed + size) for start, size in zip(starts, (9, 4, 1), strict=False)] for each in (found, reference)
        ]
        for _ in range(2):  # the second time it is a replay
            assert torch.allclose(found.forward(segments[0]), reference.forward(segments[1]), rtol=0, atol=1e-4)
        for own, other in zip(*segments, strict=True):  # a path of its draft becomes known
            path = [row - 1 for row in range(1, len(own.positions)) if own.positions[row] > max(own.positions[:row])]
            own.kv.keep(path)
            other.kv.keep(path)
            rest = [Segment(each.kv, TOKENS[:3], each.kv.num_tokens) for each in (own, other)]
            assert torch.allclose(found.forward(rest[:1]), reference.forward(rest[1:]), rtol=0, atol=1e-4)
    assert found.why_unrecorded is None and tape.replays > 4


@torch.inference_mode()
def test_a_drafters_rows_see_what_they_are_told():
    model, reference = (make(make_model("gemma2", "fp32").double()) for make in (paged, CausalModel))
    results = []
    for each in (model, reference):
        kv = prefilled(each, 70)
        each.forward([Segment(kv, TOKENS[70:74], 70)])
        results.append(each.forward([Segment(kv, [5, 6], 74, [73, 73], [[70, 71, 72, 74], [70, 71, 73, 75]])]))
    assert torch.allclose(*results, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_longer_passes_than_the_longest_shape_still_run():
    model, reference = (make(make_model("llama", "fp32").double()) for make in (paged, CausalModel))
    rows = [each.forward([Segment(each.own_sequence(300), TOKENS, 0)]) for each in (model, reference)]
    assert torch.allclose(*rows, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_rows_that_pad_write_nowhere():
    model = paged(make_model("llama", "fp32"), num_blocks=4)
    kv, other = prefilled(model, 10, 64), prefilled(model, 3, 64)
    before = [rows.clone() for layer in other.layers() for rows in layer]
    model.forward([Segment(kv, TOKENS[10:12], 10)])
    after = [rows for layer in other.layers() for rows in layer]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@torch.inference_mode()
def test_shapes_are_recorded_once_and_a_new_memory_anew():
    tape = TapeRecorder()
    model = paged(make_model("llama", "fp32"), tape)
    kv = model.own_sequence(300)
    for count in (1, 5, 16, 17, 40, 16):
        model.forward([Segment(kv, TOKENS[:count], 0)])
    assert model.num_recorded == 3 and sorted(model._recorded) == [(16, 16, True), (32, 16, True), (64, 16, True)]
    assert list(model.record_ahead()) == [(done, 5) for done in range(6)] and model.num_recorded == 5
    model.use_memory(PagedCache(8, remembers=False))
    model.forward([Segment(model.own_sequence(64), TOKENS[:3], 0)])
    assert model.num_recorded == 6


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_module_by_module_and_says_so(caplog):
    model = make_model("llama", "fp32")
    honest = model.model.norm.forward
    model.model.norm.forward = lambda hidden: honest(hidden) if hidden.isfinite().all().item() else hidden  # waits for the device
    found, reference = paged(model, TapeRecorder()), paged(make_model("llama", "fp32"))
    rows = [each.forward([Segment(each.own_sequence(64), TOKENS[:9], 0)]) for each in (found, reference)]
    assert torch.equal(*rows)
    assert found.num_recorded == 0 and "not permitted when stream is capturing" in found.why_unrecorded
    assert "LlamaForCausalLM cannot be recorded" in caplog.text
    found.forward([Segment(found.own_sequence(64), TOKENS[:30], 0)])
    assert caplog.text.count("cannot be recorded") == 1


@torch.inference_mode()
def test_hooks_are_called_module_by_module():
    model, seen = paged(make_model("llama", "fp32"), TapeRecorder()), []
    kv = model.own_sequence(64)
    model.forward([Segment(kv, TOKENS[:3], 0)])
    hook = model.model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    recorded = model.forward([Segment(kv, TOKENS[:3], 0)])
    assert not seen
    with model.module_by_module():
        assert torch.equal(model.forward([Segment(kv, TOKENS[:3], 0)]), recorded) and seen
    hook.remove()


def test_what_is_promised_is_measured_as_far_as_memory_reaches(tmp_path, monkeypatch):
    """Recorded passes, bit for bit: the twins of the kernels do not know a row's neighbours either."""
    monkeypatch.setattr(exactness, "PASS_ROWS", (5, 17))
    monkeypatch.setattr(exactness, "STARTS", (60, 125, 400))
    model = paged(make_model("llama", "fp32"), TapeRecorder(), num_blocks=24)
    found = exactness.establish(model, 512, tmp_path)
    assert (found.kind, found.min_rows, found.row_multiple) == ("bitwise", 16, 16), found.reason
    assert model.num_recorded > 0 and not model.operations_left
    small = paged(make_model("llama", "fp32"), num_blocks=2)
    with pytest.raises(MemoryError):
        exactness.establish(small, 512, tmp_path / "other")
