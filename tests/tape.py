"""The CPU's twin of a CUDA graph: the operators of one run, on the very tensors that they met, without the Python between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# what waits for the device or has as many results as the data say: a graph refuses them
NOT_CAPTURABLE = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique_dim", "_unique2", "bincount", "equal", "is_nonzero"}


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in NOT_CAPTURABLE or (name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **(kwargs or {}))
        places = _tensors(out)
        known = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        is_view = not func._schema.is_mutable and all(each.untyped_storage().data_ptr() in known for each in places)
        if not is_view:  # a view shows what is replayed into its base
            self.calls.append((func, args, kwargs or {}, places))
        return out


def _tensors(values: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


class TapeRecorder:
    """`replays` counts runs without Python."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        run()
        with _Tape() as tape:
            result = run()

        def replay() -> torch.Tensor:
            self.replays += 1
            for func, args, kwargs, places in tape.calls:
                for place, value in zip(places, _tensors(func(*args, **kwargs)), strict=True):
                    if place.data_ptr() != value.data_ptr():
                        place.copy_(value)
            return result

        return replay
