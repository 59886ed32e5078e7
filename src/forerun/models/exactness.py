"""Is a row's result the same alone and among others? Measured at load, on the kernels of this machine, never taken from a table."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forerun.kv_cache.protocol import OwnSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.fingerprint import fingerprint

MAX_ROWS = 128
DRAFT_ROWS = 8
PASS_ROWS = (*range(2, 16), 17, 21, 27, 33, 63, MAX_ROWS)  # passes tried at the first two places, of one request and of many
REAL_CONTEXT = 256  # contexts up to here are prefilled with random tokens, longer ones filled with noise of the same size
STARTS = (60, 125, 187, 250, 507, 1003, 2043)  # drafts of 8 rows: some cross a page, some stand far out
logger = logging.getLogger(__name__)

# Activations whose float32 loop over whole registers rounds another way than its loop over what is left
_aten = torch.ops.aten
REGISTER_ROUNDED = {_aten.silu, _aten.sigmoid, _aten.gelu, _aten.softplus, _aten.mish}
REGISTER_VALUES = 32  # the longest stride of that loop on any CPU: two registers of 16


@dataclass(frozen=True, slots=True)
class Exactness:
    """`bitwise`: on == off holds bit for bit. `distribution`: each token has the target's law, but near ties may fall otherwise."""

    kind: Literal["bitwise", "distribution"]
    reason: str
    min_rows: int
    row_multiple: int
    max_rows: int


def establish(model: CausalModel, max_model_len: int, cache: Path | None = None) -> Exactness:
    """The smallest padding under which rows do not know their neighbours; sets it on `model`. Remembered in `cache`."""
    cache = cache_folder() if cache is None else cache
    key = fingerprint(model.model, model.model.config, max_model_len, model.paddings, model.kernels, "branches", PASS_ROWS, STARTS)
    remembered = cache / f"exactness-{key}.json"
    found = _recall(remembered)
    if found is None:
        found = _probe(model, max_model_len)
        _remember(remembered, found)
    model.min_rows, model.row_multiple, model.max_rows = found.min_rows, found.row_multiple, found.max_rows
    return found


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forerun"


def _remember(path: Path, found: Exactness) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(found)))
    except OSError:
        pass  # a read-only home costs a probe at each load, nothing else


def _recall(path: Path) -> Exactness | None:
    try:
        return Exactness(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@torch.inference_mode()
def _probe(model: CausalModel, max_model_len: int) -> Exactness:
    starts = [start for start in STARTS if start + DRAFT_ROWS <= max_model_len] or [max(0, max_model_len - DRAFT_ROWS)]
    difference = ""
    step = _row_step(model)
    for min_rows, multiple in ((rows, multiple) for rows, multiple in model.paddings if multiple % step == 0):
        model.min_rows, model.row_multiple, model.max_rows = min_rows, multiple, MAX_ROWS
        difference = next(filter(None, (_looked_at(model, start, max_model_len) for start in starts)), "")
        if not difference:
            steps = f", in steps of {multiple}" if multiple > 1 else ""
            reason = f"rows alone equal rows among others, bit for bit, with passes of {min_rows} rows or more{steps}"
            return Exactness("bitwise", reason, min_rows, multiple, MAX_ROWS)
    kernels = f"the kernels that {type(model.model).__name__} runs in {model.model.dtype}{_special_weights(model.model)}{_left(model)}"
    reason = f"{kernels} give a row other bits among other rows ({difference})"
    return Exactness("distribution", reason, *model.paddings[0], MAX_ROWS)


class _Widths(TorchDispatchMode):
    """Notes how many values a row has in each activation of a pass of `num_rows` rows. Experts pad their rows themselves: their share is no row's."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_rows = num_rows
        self.found: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in REGISTER_ROUNDED and out.dtype == torch.float32 and out.device.type == "cpu" and out.numel() % self.num_rows == 0:
            self.found.add(out.numel() // self.num_rows)
        return out


def _row_step(model: CausalModel) -> int:
    """Passes need a multiple of so many rows for every activation to end with a register. Such differences are too rare to be met by chance."""
    model.min_rows, model.row_multiple, model.max_rows = 4, 1, MAX_ROWS
    num_rows = 37  # a prime, which no expert's padded rows divide into
    with _Widths(num_rows) as widths:
        model.forward([Segment(model.own_sequence(num_rows), [row % model.vocab_size for row in range(num_rows)], 0)])
    return math.lcm(*(REGISTER_VALUES // math.gcd(width, REGISTER_VALUES) for width in widths.found))


def _left(model: CausalModel) -> str:
    return f", {', '.join(sorted(model.operations_left))} by torch" if model.operations_left else ""


def _special_weights(model: torch.nn.Module) -> str:
    """Weights that bring kernels of their own (quantised ones) are named."""
    kinds = sorted({type(weight).__name__ for weight in model.parameters()} - {"Parameter"})
    return f" with weights of {', '.join(kinds)}" if kinds else ""


def _looked_at(model: CausalModel, start: int, max_model_len: int) -> str:
    """The difference at one place; far out only where the memory to measure with has room."""
    try:
        return _difference(model, start, max_model_len)
    except MemoryError:
        if start in STARTS[:2]:
            raise
        logger.info("rows at position %d are not compared: there is no memory to measure with", start)
        return ""


def _difference(model: CausalModel, start: int, max_model_len: int) -> str:
    """Decodes a few tokens one by one, in pieces, behind another branch, as drafts and among many neighbours; says which first gave other bits."""
    generator = torch.Generator().manual_seed(start)
    token_ids = torch.randint(model.vocab_size, (start + DRAFT_ROWS,), generator=generator).tolist()
    known, token_ids = token_ids[:start], token_ids[start : min(start + DRAFT_ROWS, max_model_len)]
    context = _context(model, known, len(token_ids))
    size = len(token_ids)

    def rows(kv: OwnSequence, low: int, high: int) -> Segment:
        return Segment(kv, token_ids[low:high], start + low)

    alone_kv, pieces_kv = context.copy(), context.copy()
    alone = torch.cat([model.forward([rows(alone_kv, row, row + 1)]) for row in range(size)])
    cuts = [0, min(3, size), size]
    pieces = [model.forward([rows(pieces_kv, low, high)]) for low, high in zip(cuts, cuts[1:], strict=False) if low < high]
    if not torch.equal(torch.cat(pieces), alone):
        return f"drafts of 3 and {size - 3} rows from position {start}"
    if size > 2 and not torch.equal(_second_branch(model, context.copy(), token_ids[:3], start), alone[1:3]):
        return f"a draft's second branch from position {start}"
    for num_rows in PASS_ROWS if start in STARTS[:2] else (size, 3 * size):
        cut = _drafts(num_rows, size)
        # each request knows the tokens before its draft, as if they had been accepted
        found = model.forward([rows(alone_kv.copy(), low, high) for low, high in cut])
        if not torch.equal(found, torch.cat([alone[low:high] for low, high in cut])):
            return f"{num_rows} rows in {len(cut)} requests from position {start}"
    return ""


def _second_branch(model: CausalModel, kv: OwnSequence, token_ids: list[int], start: int) -> torch.Tensor:
    """Logits of the last two of these tokens as a draft's second branch, behind another guess in the place of the first of them."""
    root, first, second = token_ids
    rows = Segment(kv, [root, (first + 1) % model.vocab_size, first, second], start, [start, start + 1, start + 1, start + 2])
    return model.forward([rows])[2:]


def _drafts(num_rows: int, longest: int) -> list[tuple[int, int]]:
    """`num_rows` rows as the drafts of one request or more: (first row, end) of each, the first from row 0, the others from here and there."""
    cut: list[tuple[int, int]] = []
    while num_rows > 0:
        length = min(longest, num_rows)
        low = 3 * len(cut) % (longest - length + 1)
        cut.append((low, low + length))
        num_rows -= length
    return cut


def _context(model: CausalModel, token_ids: list[int], num_more: int) -> OwnSequence:
    """Keys and values of `token_ids`, with room for more. What they are does not matter, but attention should be as peaked as it is in use."""
    kv = model.own_sequence(len(token_ids) + num_more)
    real = token_ids[:REAL_CONTEXT]
    model.prefill(Segment(kv, real, 0))
    noise = torch.Generator().manual_seed(len(token_ids))
    if len(real) < len(token_ids):
        kv.fill(len(real), [(_like(keys, len(real), noise), _like(values, len(real), noise)) for keys, values in kv.layers()])
    return kv


def _like(rows: torch.Tensor, num_real: int, noise: torch.Generator) -> torch.Tensor:
    """Random rows of the size of the first ones, to the end."""
    size = rows[:, :num_real].float().std().cpu()
    return (torch.randn(rows[:, num_real:].shape, generator=noise) * size).to(rows.dtype).to(rows.device)
