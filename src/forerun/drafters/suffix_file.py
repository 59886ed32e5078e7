"""The file of a suffix store: safetensors, with a versioned header and every number checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from forerun.types import InvalidInputError

FORMAT = "forerun suffix store"
VERSION = 1
KEY_BYTES = 16
_DTYPES = {"token_ids": np.int32, "num_tokens": np.int64, "owners": np.int32, "tenants": np.uint8}


@dataclass(frozen=True, slots=True)
class StoredOutputs:
    """Outputs from old to new; `owners[i]` is the index in `tenants` (keys of 16 bytes) of whom output `i` belongs to."""

    max_tokens: int
    prompt_tokens: int
    texts: Sequence[np.ndarray]
    owners: Sequence[int]
    tenants: Sequence[bytes]


def write_outputs(path: str | Path, outputs: StoredOutputs) -> None:
    """Beside the old file first, so that an interrupted write leaves that one whole. Raises InvalidInputError where no file can be written."""
    columns = {
        "token_ids": np.concatenate([np.zeros(0, np.int32), *outputs.texts]),
        "num_tokens": np.array([len(text) for text in outputs.texts], np.int64),
        "owners": np.array(outputs.owners, np.int32),
        "tenants": np.frombuffer(b"".join(outputs.tenants), np.uint8).reshape(-1, KEY_BYTES),
    }
    header = {"format": FORMAT, "version": VERSION, "max_tokens": outputs.max_tokens, "prompt_tokens": outputs.prompt_tokens}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(columns, partial, metadata={"header": json.dumps(header)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise InvalidInputError("path", str(path), f"cannot be written ({error}): give a file in a folder that exists") from error


def read_outputs(path: str | Path) -> StoredOutputs:
    """Raises InvalidInputError for a file that cannot be read, is none of these, is of a later version, or does not add up."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            columns = {name: file.get_tensor(name) for name in _DTYPES if name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InvalidInputError("suffix store", str(path), f"cannot be read ({error}): give a file that SuffixStore.save wrote") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InvalidInputError("suffix store", str(path), "is another kind of file: give one that SuffixStore.save wrote")
    if header.get("version") != VERSION:
        raise InvalidInputError("suffix store", str(path), f"has version {header.get('version')}, this forerun reads {VERSION}: build it again")
    problem = _problem(header, columns)
    if problem is not None:
        raise InvalidInputError("suffix store", str(path), f"is damaged ({problem}): build it again")
    lengths = columns["num_tokens"]
    return StoredOutputs(
        header["max_tokens"],
        header["prompt_tokens"],
        np.split(columns["token_ids"], np.cumsum(lengths)[:-1]) if len(lengths) else [],
        columns["owners"].tolist(),
        [row.tobytes() for row in columns["tenants"]],
    )


def _problem(header: dict[str, object], columns: dict[str, np.ndarray]) -> str | None:
    """What does not fit together, if anything."""
    if not all(type(header.get(name)) is int for name in ("max_tokens", "prompt_tokens")):
        return "its header lacks sizes"
    for name, dtype in _DTYPES.items():
        if name not in columns or columns[name].dtype != dtype or columns[name].ndim != 1 + (name == "tenants"):
            return f"column {name} is not what it should be"
    token_ids, lengths, owners, tenants = (columns[name] for name in _DTYPES)
    if tenants.shape[1] != KEY_BYTES or len(owners) != len(lengths) or int(lengths.sum()) != len(token_ids):
        return "its columns do not fit together"
    if (lengths < 0).any() or (token_ids < 0).any() or (owners < 0).any() or (owners >= len(tenants)).any():
        return "its numbers are out of range"
    return None
