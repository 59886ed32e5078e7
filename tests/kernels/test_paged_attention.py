"""Paged attention: the kernel (in Triton's interpreter where there is no GPU) and its twin against float64; a row alone and among others."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts_and_trees import Layer, lay_out, make_text, random_depths

from forerun.kernels import paged_attention_reference as twin
from forerun.kv_cache import protocol

kernel = pytest.importorskip("forerun.kernels.paged_attention", reason="needs triton")

both = pytest.mark.parametrize("kernels", [kernel, twin], ids=["kernel", "twin"])
# Triton's interpreter cuts bfloat16 off instead of rounding it
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 3e-2}
SMALL = Layer(4, 2, 16, 16, torch.float32)
TREE = [0, 1, 2, 2, 3, 1, 2]

HALF = replace(SMALL, dtype=torch.float16)

LAYERS = {
    "heads of their own": Layer(3, 3, 16, 16, torch.float16),
    "three heads a key head": Layer(6, 2, 24, 40, torch.float32),
    "one key head for twenty": Layer(20, 1, 40, 16, torch.float16),
    "bfloat16": replace(SMALL, dtype=torch.bfloat16),
    "window": replace(HALF, window=70, scaling=0.5),
    "window of a split": replace(HALF, window=256),
    "softcap": replace(HALF, softcap=1.5, scaling=1.0),
    "sinks": replace(HALF, sinks=(3.0, -2.0, 0.0, 30.0)),
    "all": Layer(2, 2, 16, 24, torch.float32, 0.4, 33, 3.0, (1.0, -1.0)),
}


def per_tile(layer: Layer) -> int:
    return twin.rows_per_tile(layer.num_heads, layer.num_kv_heads)


def assert_rows(found, layer, texts, laid):
    seen = set()
    for text, low in zip(texts, laid.first_rows, strict=True):
        for row in range(len(text.depths)):
            expected = text.expected(row, layer)
            torch.testing.assert_close(found[low + row].double(), expected, rtol=TOLERANCE[layer.dtype], atol=TOLERANCE[layer.dtype])
            seen.add(low + row)
    pads = [row for row in range(found.shape[0]) if row not in seen]
    assert found.dtype == layer.dtype and found[pads].eq(0).all()


@both
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_against_float64(kernels, layer):
    texts = [make_text(layer, 253, TREE, 1), make_text(layer, 63, [0, 1], 2), make_text(layer, 0, [0], 3)]
    laid = lay_out(layer, texts, 12, 5, per_tile(layer))
    assert_rows(laid.run(kernels, layer), layer, texts, laid)


@both
@pytest.mark.parametrize("starts", [(0, 1, 62, 63, 64), (254, 255, 256, 257)])
def test_around_the_ends_of_pages_and_splits(kernels, starts):
    layer = Layer(2, 1, 16, 16, torch.float16)
    texts = [make_text(layer, start, [0, 1, 1], start) for start in starts]
    laid = lay_out(layer, texts, 16, 5, per_tile(layer))
    assert_rows(laid.run(kernels, layer), layer, texts, laid)


def check_random_pass(kernels, seed):
    generator = random.Random(seed)
    kv_heads, dim = generator.choice([1, 2]), generator.choice([8, 16, 20])
    window = generator.choice([None, None, 1, 5, 64, 100])
    dtype = torch.float32 if kernels is twin else torch.float16
    layer = Layer(kv_heads * generator.choice([1, 2, 4]), kv_heads, dim, generator.choice([8, dim]), dtype, window=window)
    texts = [
        make_text(layer, generator.choice([0, 3, 60, 63, 64, 127, 250, 256]), random_depths(generator, generator.randint(1, 7)), seed + index)
        for index in range(generator.randint(1, 3))
    ]
    laid = lay_out(layer, texts, generator.choice([21, 24]), generator.choice([5, 9]), generator.randint(1, per_tile(layer)), seed)
    assert_rows(laid.run(kernels, layer), layer, texts, laid)


@given(st.integers(0, 2**32 - 1))
def test_random_passes_of_the_twin(seed):
    check_random_pass(twin, seed)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=4)
def test_random_passes_of_the_kernel(seed):
    check_random_pass(kernel, seed)


@pytest.fixture
def no_order(monkeypatch):
    """The interpreter's products hold for any order: numpy's own depends on the processor. What is left are the orders that the kernel itself writes down."""
    if kernel.is_interpreted():
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def dot(self, a, b, d, *_):
            product = (a.data.astype("float64") @ b.data.astype("float64")).astype("float32")
            return TensorHandle(product + d.data, d.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


EXACT_LAYERS = {
    "three heads": Layer(3, 1, 24, 16, torch.float16),
    "all": Layer(2, 1, 16, 16, torch.float32, window=50, softcap=2.0, sinks=(0.1, 0.2)),
}


@pytest.mark.parametrize("layer", EXACT_LAYERS.values(), ids=EXACT_LAYERS)
def test_bits_of_a_row_are_those_of_the_row_alone(layer, no_order):
    """Among rows of a tree, of a chain and of other texts; in other places, tiles, passes and memories."""
    tree, chain = make_text(layer, 253, TREE, 5), make_text(layer, 62, [0, 1, 2], 6)
    laid = lay_out(layer, [chain, tree], 12, 5, per_tile(layer))
    among = laid.run(kernel, layer)
    in_tree, in_chain = (among[low:] for low in laid.first_rows[::-1])
    tiles = lay_out(layer, [tree.plain(0), tree.plain(4), tree.plain(6), chain.plain(2)], 4, 9, per_tile(layer), seed=1)
    assert torch.equal(tiles.run(kernel, layer), torch.stack([in_tree[0], in_tree[4], in_tree[6], in_chain[2]]))
    alone = lay_out(layer, [tree.plain(3)], 1, 17, 1, seed=2)
    assert torch.equal(alone.run(kernel, layer)[0], in_tree[3])
    along = lay_out(layer, [make_text(layer, 5, [0, 1, 1], 7), tree.plain(4, rows=4)], 9, 5, max(1, per_tile(layer) - 1), seed=3)
    assert torch.equal(along.run(kernel, layer)[along.first_rows[1] + 3], in_tree[4])


@both
def test_whole_numbers_are_summed_exactly(kernels):
    """Weights are powers of two here and values whole, so that only what is added counts, in any order: a key too many or too few shows in any bit."""
    layer = Layer(2, 1, 8, 8, torch.float32, scaling=math.log(2.0))
    tree = make_text(layer, 257, TREE, 8, whole=True)
    laid = lay_out(layer, [make_text(layer, 64, [0, 1], 9, whole=True), tree], 9, 5, per_tile(layer))
    among = laid.run(kernels, layer)[2:]
    for row in (0, 4, 6):
        alone = lay_out(layer, [tree.plain(row)], 1, 9, per_tile(layer), seed=row).run(kernels, layer)[0]
        if kernels is twin:  # its powers of e are not
            torch.testing.assert_close(among[row], alone, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(among[row], alone)
        torch.testing.assert_close(among[row].double(), tree.expected(row, layer), rtol=1e-6, atol=1e-6)


@both
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy says what the interpreter multiplies
def test_what_is_no_number_stays_in_its_own_rows(kernels):
    """A draft that a broken cache or an overflow spoils: its siblings and ancestors, in the same tile, do not see it."""
    clean = make_text(HALF, 62, TREE, 10)
    spoiled = replace(clean, keys=clean.keys.clone(), values=clean.values.clone())
    spoiled.keys[:, 62 + 2], spoiled.values[:, 62 + 4] = float("nan"), float("inf")  # both have no child
    found, expected = (lay_out(HALF, [text], 7, 2, per_tile(HALF)).run(kernels, HALF) for text in (spoiled, clean))
    others = [0, 1, 3, 5, 6]
    assert torch.equal(found[others], expected[others])
    assert not found[[2, 4]].isfinite().any()


def test_rows_that_need_too_much_workspace_go_in_several_launches(monkeypatch):
    texts = [make_text(HALF, 256, TREE[:4], 11), make_text(HALF, 20, [0, 1], 12)]
    laid = lay_out(HALF, texts, 7, 5, per_tile(HALF))
    at_once = laid.run(kernel, HALF)
    monkeypatch.setattr(kernel, "WORKSPACE_BYTES", 3 * 4 * 2 * (16 + 2) * 4)  # three rows: a tile's rows fall into two launches
    assert torch.equal(laid.run(kernel, HALF), at_once)


@both
def test_what_does_not_fit_is_refused(kernels):
    laid = lay_out(SMALL, [make_text(SMALL, 3, [0], 13)], 16, 4, 8)
    given = [laid.query, laid.key_memory, laid.value_memory, laid.rows]

    def attend(at=0, tensor=None, window=None, sinks=None):
        arguments = [tensor if index == at and tensor is not None else each for index, each in enumerate(given)]
        kernels.paged_attention(*arguments, None, window, None, sinks)

    with pytest.raises(ValueError, match="does not fit"):
        attend(0, laid.query[:, :3])
    with pytest.raises(ValueError, match="does not fit"):
        attend(0, laid.query[:, :, :15])
    with pytest.raises(ValueError, match="does not fit contiguous"):
        attend(1, laid.key_memory[:, ::2])
    with pytest.raises(ValueError, match="one dtype"):
        attend(2, laid.value_memory.half())
    with pytest.raises(ValueError, match="window is 1 or more"):
        attend(window=0)
    with pytest.raises(ValueError, match="sinks"):
        attend(sinks=torch.zeros(3))
    with pytest.raises(ValueError, match="does not fit"):
        kernels.store_rows(laid.key.half(), laid.value, laid.key_memory, laid.value_memory, laid.rows.slots)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.store_rows(laid.key, laid.value[:, :1], laid.key_memory, laid.value_memory, laid.rows.slots)


def test_float64_is_refused_by_the_kernel():
    layer = replace(SMALL, dtype=torch.float64)
    with pytest.raises(ValueError, match="not torch.float64"):
        lay_out(layer, [make_text(layer, 3, [0], 14)], 16, 4, 8).run(kernel, layer)


def test_pages_are_those_of_the_cache_and_a_tile_fills_an_instruction():
    assert twin.PAGE_SIZE == protocol.PAGE_SIZE
    assert [twin.rows_per_tile(heads, kv_heads) for heads, kv_heads in ((8, 8), (32, 8), (6, 2), (32, 1), (71, 1))] == [16, 4, 5, 1, 1]


def test_the_twin_needs_no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("read_again", twin.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
