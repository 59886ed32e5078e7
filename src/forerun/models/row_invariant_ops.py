"""Operations whose CUDA kernels look at the number of rows, sent to kernels that do not, whatever a model file calls.

A `TorchDispatchMode` is active while a pass is recorded, so its Python costs nothing afterwards. What torch's kernels do, by their sources (docs/decisions/0016):

| operation | torch's kernel | here |
|---|---|---|
| matrix products (`mm`, `addmm`, `linear`, `bmm`) | the library chooses by the number of rows | `row_linear` |
| `mean`, `sum`, `var`, `std`, `linalg_vector_norm` over one dimension | the block's shape comes from both the length and the number of results | `row_mean`, `row_sum` |
| the same over several dimensions, `cumsum`, `logsumexp`, convolutions, fused attention, ... | depend on it too; the engine's text models need none of them for floats | torch's, and named in `left` |
| `softmax`, `layer_norm`, `rms_norm` | a warp or a block of fixed size a row, by the row's length | torch's |
| `topk`, `sort`, `max`, `argmax` | choose and add nothing; up to 400 values a row, one block a row | torch's |
| elementwise, indexing, sums of integers | no order that could matter | torch's |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forerun.kernels.linear import DTYPES, row_linear
from forerun.kernels.row_mean import row_mean, row_sum

MAX_PRODUCTS = 128  # of a batch, a launch each: experts have fewer; a product for each head and row is an attention

aten = torch.ops.aten


def _reduced(
    x: torch.Tensor,
    dim: Sequence[int] | int | None,
    keepdim: bool,
    dtype: torch.dtype | None,
    reduce: Callable[[torch.Tensor, bool], torch.Tensor],
) -> Any:
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    if len(dims) != 1 or x.dim() == 0:
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    if x.dtype not in DTYPES:
        return NotImplemented
    found = reduce(x.movedim(dims[0], -1), keepdim)
    return found.movedim(-1, dims[0]) if keepdim else found


def _mean(x: torch.Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    return _reduced(x, dim, keepdim, dtype, row_mean)


def _sum(x: torch.Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    return _reduced(x, dim, keepdim, dtype, row_sum)


def _var(x: torch.Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    def reduce(rows: torch.Tensor, keep: bool) -> torch.Tensor:
        wide = rows.float()
        squares = row_sum((wide - row_mean(wide, True)).square(), keep)
        return (squares / max(rows.shape[-1] - (1 if correction is None else correction), 0)).to(rows.dtype)

    return _reduced(x, dim, keepdim, None, reduce)


def _std(x: torch.Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    found = _var(x.float() if x.dtype in DTYPES else x, dim, correction=correction, keepdim=keepdim)
    return found if found is NotImplemented else found.sqrt().to(x.dtype)


def _norm(
    x: torch.Tensor, ord: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    if ord != 2:
        return NotImplemented
    return _reduced(x, dim, keepdim, dtype, lambda rows, keep: row_sum(rows.float().square(), keep).sqrt().to(rows.dtype))


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    return row_linear(x, weight, bias) if x.dtype in DTYPES and weight.dim() == 2 else NotImplemented


def _mm(x: torch.Tensor, weight: torch.Tensor) -> Any:
    return row_linear(x, weight.t()) if x.dtype in DTYPES else NotImplemented


def _addmm(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if x.dtype not in DTYPES:
        return NotImplemented
    if beta == alpha == 1 and bias.shape == weight.shape[1:]:
        return row_linear(x, weight.t(), bias)
    return beta * bias + alpha * row_linear(x, weight.t())


def _bmm(x: torch.Tensor, weight: torch.Tensor) -> Any:
    """Each product by itself. A product along a K of 1, of which rotary embeddings are made, has no order."""
    if x.dtype not in DTYPES or x.shape[2] == 1 or not 1 <= x.shape[0] <= MAX_PRODUCTS:
        return NotImplemented
    return torch.stack([row_linear(rows, each.t()) for rows, each in zip(x, weight, strict=True)])


OURS: dict[Any, Callable[..., Any]] = {
    aten.linear.default: _linear,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _sum,
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.linalg_vector_norm.default: _norm,
}
# what depends on the number of rows in some form, and is named where that form is met
DEPENDS_ON_ROWS = {function.overloadpacket for function in OURS} | {
    aten._grouped_mm, aten.baddbmm, aten.convolution, aten.cumprod, aten.cumsum, aten.logcumsumexp, aten.logsumexp, aten.nansum, aten.prod, aten.std_mean, aten.var_mean,
    aten._scaled_dot_product_cudnn_attention, aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
}  # fmt: skip


class RowInvariantOps(TorchDispatchMode):
    """Rows are those of a product's left operand. Tensors of other devices, and subclasses (quantised weights), keep their kernels."""

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self._is_paused = False
        self.left: set[str] = set()  # operations that ran on floats by torch's kernels although those depend on the number of rows

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or not self._concerns(args):
            return func(*args, **kwargs)
        if func in OURS:
            found = OURS[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        else:
            with self:  # in inference mode compound operations arrive whole
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        if func.overloadpacket in DEPENDS_ON_ROWS and not _is_one_product(func, args):
            self.left.add(str(func))
        return func(*args, **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For kernels that have an order of their own: what they are made of runs as it is."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def _concerns(self, args: tuple[Any, ...]) -> bool:
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        return any(each.is_floating_point() and each.device.type == self.device_type for each in tensors) and all(
            type(each) in (torch.Tensor, torch.nn.Parameter) for each in tensors
        )


def _is_one_product(func: Any, args: tuple[Any, ...]) -> bool:
    return func is aten.bmm.default and args[0].shape[2] == 1


__all__ = ["RowInvariantOps"]
