"""The paged attention compiled for GPUs that need not be there: which matrix instruction a row meets, how often, and what a program takes."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from compile_kernels import in_own_process  # noqa: E402

SMALLEST_SHARED, H100_SHARED = 99 * 1024, 227 * 1024  # of one program
MATRIX = {"bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"}


@pytest.fixture(scope="module")
def variants():
    return in_own_process("attention_variants")


def products(sizes: dict[str, int], num_warps: int) -> int:
    """Matrix instructions of a warp in one step: scores, then weighted values."""
    lines, keys = sizes["BLOCK_M"] // 16, sizes["STEP_KEYS"]
    scores = -(-lines * keys // 8 // num_warps) * (sizes["BLOCK_D"] // 16)
    return scores + -(-lines * sizes["BLOCK_V"] // 8 // num_warps) * (keys // 16)


def test_shared_and_own_keys_go_through_the_same_instructions(variants):
    """One step's worth of them in the whole program: there is no second copy of the loop that could be compiled another way."""
    counted = 0
    for variant in variants:
        if variant["dtype"] in MATRIX and variant["block_m"] < 64:
            assert variant["matrix_instructions"] == [MATRIX[variant["dtype"]]], variant
            assert variant["num_matrix_instructions"] == products(variant["constants"], variant["num_warps"]), variant
            counted += 1
        elif variant["dtype"] == "float32":
            sizes = variant["constants"]
            each = sizes["BLOCK_M"] * sizes["STEP_KEYS"] * (sizes["BLOCK_D"] + sizes["BLOCK_V"]) // (32 * variant["num_warps"])
            assert variant["matrix_instructions"] == [] and each <= variant["multiply_adds"] < each + 100, variant
            counted += 1
    assert counted == 7


def test_no_size_of_a_pass_chooses_another_compilation(variants):
    assert all(variant["choosing"] == [] for variant in variants)


def test_nothing_is_added_by_whoever_comes_first(variants):
    assert all(variant["atomics"] == 0 for variant in variants)


def test_nothing_spills_and_a_program_fits_the_smallest_gpu(variants):
    for variant in variants:
        assert variant["stack"] == 0, variant
        # with 64 lines on an H100 the warp groups' instruction takes its operands from shared memory
        assert variant["shared_bytes"] <= (H100_SHARED if variant["block_m"] == 64 else SMALLEST_SHARED), variant


def test_keys_and_values_are_on_their_way_before_they_are_multiplied(variants):
    for variant in variants:
        if variant["dtype"] is not None:
            assert variant["wide_copies"] > 0, variant


def test_rows_are_all_read_before_one_is_overwritten(variants):
    (moving,) = [variant for variant in variants if variant["name"].startswith("move_rows")]
    assert moving["reads_all_before_it_writes"]
