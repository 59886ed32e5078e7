"""`y = x W^T + b` with bits of a row that are a function of that row, the weight and the bias alone.

A library's matrix product picks its tiles, its instruction and its split of K by the number of rows, so that a row gets other bits beside others. Here
all of that comes from the weight's shape and dtype (docs/decisions/0016). The number of rows chooses only how many of them one program takes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MAX_ROWS = 128  # of one pass of the kernel; more are cut into passes
REFERENCE_ROWS = 128  # of every product of the twin
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

BLOCK_N = 64  # columns of one program
SPLIT_STEP = 128  # K is split at multiples of this, which every BLOCK_K divides
MIN_SPLIT_STEPS = 4  # a shorter walk along K would not fill the pipeline of loads
WANTED_PROGRAMS = 128  # nearly one for each of 132 multiprocessors, with enough loads under way in each; more would only be more parts to add up


def split_of(n: int, k: int) -> tuple[int, int]:
    """Into how many parts K is cut, and how long each but the last is: what fills the device with one tile of rows, whatever their number."""
    columns = -(-n // BLOCK_N)
    steps = -(-k // SPLIT_STEP)
    wanted = min(-(-WANTED_PROGRAMS // columns), max(1, steps // MIN_SPLIT_STEPS))
    steps_each = -(-steps // wanted)
    return -(-steps // steps_each), steps_each * SPLIT_STEP


def row_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`[..., N]` of x `[..., K]`, weight `[N, K]` with any strides (a `[K, N]` weight goes in as its transpose) and bias `[N]`."""
    return torch.ops.forerun.row_linear(x, weight, bias)  # type: ignore[no-any-return]


def row_linear_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The twin in torch: every product has `REFERENCE_ROWS` rows, so that none is chosen by their number."""
    rows = x.reshape(-1, x.shape[-1])
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    for first in range(0, rows.shape[0], REFERENCE_ROWS):
        some = rows[first : first + REFERENCE_ROWS]
        out[first : first + REFERENCE_ROWS] = F.linear(F.pad(some, (0, 0, 0, REFERENCE_ROWS - some.shape[0])), weight, bias)[
            : some.shape[0]
        ]
    return out.view(*x.shape[:-1], weight.shape[0])


def check_operands(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Refuses what would be read past its end, or rounded another way than the caller thinks."""
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"row_linear: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"row_linear: bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
    others = (weight,) if bias is None else (weight, bias)
    if x.dtype not in DTYPES or any(other.dtype != x.dtype for other in others):
        raise ValueError(
            f"row_linear: one dtype of bfloat16, float16 and float32, not {x.dtype} by {', '.join(str(other.dtype) for other in others)}"
        )


@torch.library.custom_op("forerun::row_linear", mutates_args=())
def _row_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    check_operands(x, weight, bias)
    if x.device.type == "cuda":
        from forerun.kernels.linear_kernel import launch_row_linear  # triton comes with torch's CUDA builds only

        return launch_row_linear(x, weight, bias)
    return row_linear_reference(x, weight, bias)


@_row_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


__all__ = ["BLOCK_N", "DTYPES", "MAX_ROWS", "check_operands", "row_linear", "row_linear_reference", "split_of"]
