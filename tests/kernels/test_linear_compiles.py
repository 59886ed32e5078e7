"""The kernels compiled for GPUs that need not be there: which matrix instruction a row meets, in what order, and what the program takes of a multiprocessor."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from compile_kernels import in_own_process  # noqa: E402

MULTIPROCESSOR_REGISTERS, SHARED_BYTES = 65536, {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MATRIX = {
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
}


@pytest.fixture(scope="module")
def variants():
    return in_own_process("linear_variants")


def test_whatever_the_rows_they_meet_one_instruction_in_one_order(variants):
    """On sm_90 four warps and 64 rows would be given wgmma, and a row among 64 then other bits than alone."""
    met = {"bfloat16": set(), "float16": set(), "float32": set()}
    for variant in variants:
        if variant["dtype"] is None:
            assert variant["matrix_instructions"] == []
            continue
        assert variant["matrix_instructions"] == ([MATRIX[variant["dtype"]]] if variant["dtype"] in MATRIX else []), variant["name"]
        if variant["dtype"] in MATRIX:
            # each accumulator goes through all 16-wide pieces of a step, each instruction adding to what the last one wrote
            assert variant["chains"] == [variant["block_k"] // 16], variant["name"]
        else:
            assert variant["multiply_adds"] == variant["block_k"] * variant["block_m"] * 64 // (32 * variant["num_warps"]), variant["name"]
        met[variant["dtype"]].add((variant["capability"], variant["block_m"]))
    assert met["bfloat16"] >= {(80, 16), (80, 64), (90, 16), (90, 32), (90, 64), (100, 64)}
    assert met["float16"] and met["float32"]


def test_nothing_is_added_by_whoever_comes_first(variants):
    assert all(variant["atomics"] == 0 for variant in variants)


def test_nothing_spills_and_two_programs_fit_a_multiprocessor(variants):
    for variant in variants:
        assert variant["stack"] == 0, variant
        assert 2 * variant["shared_bytes"] <= SHARED_BYTES[variant["capability"]], variant
        assert 2 * variant["registers"] * 32 * variant["num_warps"] <= MULTIPROCESSOR_REGISTERS, variant


def test_weights_are_copied_sixteen_bytes_at_a_time(variants):
    for variant in variants:
        if variant["dtype"] is not None:
            assert variant["wide_copies"] > 0 and variant["narrow_copies"] == 0, variant
