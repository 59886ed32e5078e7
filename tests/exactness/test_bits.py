"""A row's logits are the same bits alone and in a draft, and close to those of transformers' own forward."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import ARCHITECTURES, VOCAB_SIZE, WINDOW, make_model

from forerun import LLM
from forerun.kv_cache.contiguous import ContiguousSequence
from forerun.models.attention import Segment
from forerun.types import TokenTree

BITWISE = [(name, dtype) for name in ARCHITECTURES for dtype in ("bf16", "fp32")]
TOKENS = torch.randint(VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(7)).tolist()
STARTS = [0, WINDOW - 3, 60, 124]  # inside a page, over the window's end, over a page's end, over a prefill cut


@pytest.fixture(scope="module")
def causal_of():
    made = {}

    def get(architecture, dtype):
        key = (architecture, dtype, torch.get_num_threads())
        if key not in made:
            llm = LLM(make_model(architecture, dtype), None)
            made[key] = (llm.exactness, llm.engine.model_runner.model)
        return made[key]

    return get


def prefilled(model, start):
    kv = ContiguousSequence(len(TOKENS) + 64)
    if start:
        model.prefill(Segment(kv, TOKENS[:start], 0))
        kv.advance(start)
    return kv


def one_by_one(model, start, count):
    kv = prefilled(model, start)
    return torch.cat([model.forward([Segment(kv, TOKENS[row : row + 1], row)]) for row in range(start, start + count)])


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "dtype"), BITWISE)
@pytest.mark.parametrize("start", STARTS)
def test_verify_pass_equals_plain_decoding(causal_of, architecture, dtype, start):
    exactness, model = causal_of(architecture, dtype)
    assert exactness.kind == "bitwise", exactness.reason
    plain = one_by_one(model, start, 13)
    for size in (2, 3, 5, 7, 8, 9, 13):
        drafted = model.forward([Segment(prefilled(model, start), TOKENS[start : start + size], start)])
        assert torch.equal(drafted, plain[:size]), f"{size} rows"


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "dtype"), [("llama", "bf16"), ("llama", "fp32"), ("qwen2_moe", "fp32")])
def test_on_more_threads(causal_of, own_cache, architecture, dtype):
    """The other tests run on one thread, because models this small only wait for each other on more."""
    torch.set_num_threads(max(2, own_cache))
    try:
        exactness, model = causal_of(architecture, dtype)
        assert exactness.kind == "bitwise", exactness.reason
        plain = one_by_one(model, 60, 12)
        for size in (2, 5, 9, 10, 11):
            drafted = model.forward([Segment(prefilled(model, 60), TOKENS[60 : 60 + size], 60)])
            assert torch.equal(drafted, plain[:size]), f"{size} rows"
    finally:
        torch.set_num_threads(1)


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "dtype"), BITWISE)
def test_neighbours_change_no_bit(causal_of, architecture, dtype):
    _, model = causal_of(architecture, dtype)
    requests = [(61, 5), (3, 1), (130, 9), (64, 2), (15, 8)]
    together = model.forward([Segment(prefilled(model, start), TOKENS[start : start + size], start) for start, size in requests])
    for part, (start, size) in zip(together.split([size for _, size in requests]), requests, strict=True):
        assert torch.equal(part, one_by_one(model, start, size))


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "dtype"), BITWISE)
def test_rejected_rows_leave_no_trace(causal_of, architecture, dtype):
    _, model = causal_of(architecture, dtype)
    start, kv = 60, prefilled(model, 60)
    wrong = [(token_id + 1) % VOCAB_SIZE for token_id in TOKENS[start + 1 : start + 8]]
    model.forward([Segment(kv, [TOKENS[start], *wrong], start)])
    kv.keep([])
    after = model.forward([Segment(kv, TOKENS[start + 1 : start + 7], start + 1)])
    assert torch.equal(after, one_by_one(model, start, 7)[1:])


def bush(start, chance):
    """Twenty nodes after token `start`, with the text's own next tokens somewhere among them; and that path."""
    parents, token_ids, path = [], [], []
    for node in range(20):
        right = path[-1] if path else -1
        grows = len(path) < 7 and chance.random() < 0.4
        parents.append(right if grows else chance.randrange(-1, node))
        token_ids.append(TOKENS[start + 1 + len(path)] if grows else chance.randrange(VOCAB_SIZE))
        if grows:
            path.append(node)
    tree = TokenTree(tuple(token_ids), tuple(parents)).depth_first()
    node, kept = -1, []
    for token_id in TOKENS[start + 1 :]:
        node = tree.child(node, token_id)
        if node is None:
            return tree, kept
        kept.append(node)


def tree_segment(kv, start, tree):
    return Segment(kv, [TOKENS[start], *tree.token_ids], start, [start, *(start + 1 + depth for depth in tree.depths)])


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "dtype"), BITWISE)
@pytest.mark.parametrize("start", [WINDOW - 3, 60])
def test_a_tree_row_equals_plain_decoding_of_its_path(causal_of, architecture, dtype, start):
    """Every node, not only the accepted ones; and what is decoded behind the kept path, next to another request's tree."""
    _, model = causal_of(architecture, dtype)
    chance = random.Random(start)
    (tree, path), (other, _) = bush(start, chance), bush(3, chance)
    assert not tree.is_chain and path
    kv = prefilled(model, start)
    logits = model.forward([tree_segment(prefilled(model, 3), 3, other), tree_segment(kv, start, tree)])[1 + len(other) :]
    for node in range(len(tree)):
        alone = prefilled(model, start)
        for position, token_id in enumerate([TOKENS[start], *tree.path_to(node)], start):
            row = model.forward([Segment(alone, [token_id], position)])
        assert torch.equal(logits[1 + node], row[0]), f"node {node}"
    kv.keep(path)
    after = start + 1 + len(path)
    found = model.forward([Segment(kv, TOKENS[after : after + 4], after)])
    assert torch.equal(found, one_by_one(model, start, 5 + len(path))[1 + len(path) :])


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "dtype"), BITWISE)
def test_prefill_equals_plain_decoding(causal_of, architecture, dtype):
    """A resumed request prefills what the uninterrupted one decoded."""
    _, model = causal_of(architecture, dtype)
    for start in (0, 61):
        kv = prefilled(model, start)
        found = torch.cat(list(model.prefill_logits(Segment(kv, TOKENS[start:150], start))))
        assert torch.equal(found, one_by_one(model, start, 150 - start))


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_close_to_transformers_far_past_the_window(causal_of, architecture, implementation):
    _, model = causal_of(architecture, "fp32")
    reference = make_model(architecture, "fp32")
    if implementation == "sdpa" and not reference._supports_sdpa:
        pytest.skip(f"transformers has no sdpa for {architecture}")
    reference.set_attn_implementation(implementation)
    expected = reference(input_ids=torch.tensor([TOKENS])).logits[0]
    kv = prefilled(model, 150)
    found = model.forward([Segment(kv, TOKENS[150:190], 150)])
    torch.testing.assert_close(found, expected[150:190], rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "gemma2"])
def test_the_sliding_window_matters_here(causal_of, architecture):
    """Without it the comparison above would pass on models that ignore their window."""
    _, model = causal_of(architecture, "fp32")
    wide = make_model(architecture, "fp32")
    for layer in wide.model.layers:
        layer.self_attn.sliding_window = None
    wide.config.sliding_window = 512
    expected = wide(input_ids=torch.tensor([TOKENS])).logits[0, 150:190]
    found = model.forward([Segment(prefilled(model, 150), TOKENS[150:190], 150)])
    assert (found - expected).norm() / expected.norm() > 0.05
