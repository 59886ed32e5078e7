"""Linear layers of experts: which pairs are multiplied together, the kernel and its twin against float64, and a row alone and among others."""

from __future__ import annotations

import pytest
import torch

from forerun.kernels.expert_linear import TILE_PAIRS, expert_linear, expert_linear_reference, expert_tiles

kernel = pytest.importorskip("forerun.kernels.expert_linear_kernel", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
functions = pytest.mark.parametrize("function", [kernel.launch_expert_linear, expert_linear_reference], ids=["kernel", "twin"])
# rows, top_k, experts; ids reach one past the last expert
SHAPES = [(1, 2, 4), (3, 2, 8), (40, 4, 6), (20, 1, 1), (17, 2, 128), (128, 8, 9)]


def routing(rows, top_k, num_experts):
    generator = torch.Generator().manual_seed(rows)
    return torch.rand(rows, num_experts + max(1, top_k - num_experts), generator=generator).topk(top_k, dim=-1).indices.to(DEVICE)


def operands(rows, num_experts, n, k, dtype, transposed=False, whole=False):
    generator = torch.Generator().manual_seed(rows * 7919 + n)

    def draw(*shape):
        if whole:
            return torch.randint(-1, 2, shape, generator=generator).to(DEVICE, dtype)
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    weight = draw(num_experts, k, n).mT if transposed else draw(num_experts, n, k)
    return draw(rows, k), weight if whole else weight / k**0.5, draw(num_experts, n)


def expected_of(x, weight, bias, index):
    """`[num_pairs, N]` in float64, pair by pair."""
    out = torch.zeros(index.numel(), weight.shape[1], dtype=torch.float64, device=x.device)
    for pair, expert in enumerate(index.flatten().tolist()):
        if expert < weight.shape[0]:
            out[pair] = weight[expert].double() @ x[pair // index.shape[1]].double() + bias[expert].double()
    return out


@pytest.mark.parametrize(("rows", "top_k", "num_experts"), SHAPES)
def test_every_pair_with_an_expert_is_in_one_tile(rows, top_k, num_experts):
    index = routing(rows, top_k, num_experts)
    pairs = expert_tiles(index, num_experts)
    seen = []
    for expert, first, count in pairs.tiles.tolist():
        some = pairs.order[first : first + count].tolist()
        assert len(some) == count <= TILE_PAIRS
        assert all(index.flatten()[pair] == expert for pair in some)
        seen += some
    assert sorted(seen) == [pair for pair, expert in enumerate(index.flatten().tolist()) if expert < num_experts]


def test_the_grid_holds_the_worst_case_and_depends_on_shapes_alone():
    even = torch.arange(36, device=DEVICE).remainder(4).view(18, 2)
    for index in (even, torch.zeros_like(even), torch.full_like(even, 4), torch.full_like(even, 9)):
        pairs = expert_tiles(index, 4)
        assert pairs.tiles.shape == (6, 3)
        assert pairs.tiles[:, 2].sum() == (index < 4).sum()
    # an expert that has a pair too many for one tile, and others with one pair each
    index = torch.tensor([0] * 17 + [1] * 17 + [2, 3], device=DEVICE)[:, None]
    assert sorted(expert_tiles(index, 4).tiles[:, 2].tolist()) == [1, 1, 1, 1, 16, 16]


@dtypes
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "top_k", "num_experts"), SHAPES[:4])
@functions
def test_against_float64(function, rows, top_k, num_experts, transposed, dtype):
    index = routing(rows, top_k, num_experts)
    x, weight, bias = operands(rows, num_experts, 70, 100, dtype, transposed)
    found = function(x, weight, bias, expert_tiles(index, num_experts), top_k)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected_of(x, weight, bias, index), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("rows", "top_k", "num_experts"), SHAPES)
@functions
def test_whole_numbers_find_their_expert_exactly(function, rows, top_k, num_experts):
    index = routing(rows, top_k, num_experts)
    x, weight, bias = operands(rows, num_experts, 33, 40, torch.float32, whole=True)
    found = function(x, weight, bias, expert_tiles(index, num_experts), top_k)
    assert torch.equal(found.double(), expected_of(x, weight, bias, index))
    # a second projection takes a row of its own for every pair
    inner = found[:, :20].contiguous()
    _, down, bias = operands(rows + 1, num_experts, 5, 20, torch.float32, whole=True)
    found = function(inner, down, bias, expert_tiles(index, num_experts), 1)
    assert torch.equal(found.double(), expected_of(inner, down, bias, index.view(-1, 1)))


@dtypes
def test_a_row_has_the_same_bits_whoever_shares_its_experts(dtype):
    """By the kernel on a GPU, by the twin on a CPU."""
    index = routing(64, 4, 6)
    x, weight, bias = operands(64, 6, 70, 200, dtype)
    together = expert_linear(x, weight, bias, expert_tiles(index, 6), 4)
    for rows in (1, 2, 3, 15, 16, 17, 33):
        for first in (0, 13, 64 - rows):
            some = slice(first, first + rows)
            alone = expert_linear(x[some], weight, bias, expert_tiles(index[some], 6), 4)
            assert torch.equal(alone, together[first * 4 : (first + rows) * 4]), f"{rows} rows from {first}"


def test_operands_that_do_not_fit_are_refused():
    index = torch.zeros(3, 2, dtype=torch.long)
    x, weight, bias = torch.zeros(3, 5), torch.zeros(2, 4, 5), torch.zeros(2, 4)
    pairs = expert_tiles(index, 2)
    with pytest.raises(ValueError, match="6 pairs"):
        expert_linear(x, weight, bias, pairs, 1)
    with pytest.raises(ValueError, match="does not fit"):
        expert_linear(x[:, :4], weight, bias, pairs, 2)
    with pytest.raises(ValueError, match="one dtype"):
        expert_linear(x.half(), weight, bias, pairs, 2)
    with pytest.raises(ValueError, match="bias"):
        expert_linear(x, weight, bias[:1], pairs, 2)
