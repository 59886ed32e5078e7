"""Compiles kernels for a GPU that is not there and writes what came out as JSON: python compile_kernels.py MODULE, which has `compiled() -> iterator of Variant`.

A process of its own, because under TRITON_INTERPRET there is nothing to compile.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "int32": "*i32", "int64": "*i64"}
MATRIX = re.compile(r"(?:mma\.sync|wgmma\.mma_async)[\w.:]*")
MULTIPLY = re.compile(r"mma\.sync[^{]*\{([^}]*)\},\s*\{[^}]*\},\s*\{[^}]*\},\s*\{([^}]*)\}", re.DOTALL)


@dataclass
class Variant:
    name: str
    kernel: Any
    arguments: dict[str, Any]  # a torch dtype's name for a pointer to it, a number, None for no pointer
    constants: dict[str, Any]
    capability: int
    options: dict[str, int] = field(default_factory=dict)
    dtype: str | None = None  # of what is multiplied


def compile_variant(variant: Variant) -> dict[str, Any]:
    names = variant.kernel.arg_names
    taken_as_are = {each.name for each in variant.kernel.params if each.do_not_specialize or each.do_not_specialize_on_alignment}
    signature = {name: "constexpr" for name in variant.constants}
    constants = dict(variant.constants)
    attributes = {}
    for name, value in variant.arguments.items():
        if value is None or (value == 1 and name not in taken_as_are):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = POINTERS[value] if isinstance(value, str) else "fp32" if isinstance(value, float) else "i32"
        if name not in taken_as_are and (isinstance(value, str) or value % 16 == 0):  # taken as such where Triton launches, too
            attributes[(names.index(name),)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=variant.kernel,
        signature={name: signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    done = triton.compile(source, target=GPUTarget("cuda", variant.capability, 32), options=variant.options | {"enable_fp_fusion": True})
    text = done.asm["ptx"]
    return {
        "name": f"{variant.name} {variant.dtype or ''} sm_{variant.capability}",
        "dtype": variant.dtype,
        "capability": variant.capability,
        "block_m": variant.constants.get("BLOCK_M"),
        "block_k": variant.constants.get("BLOCK_K"),
        "num_warps": variant.options["num_warps"],
        "constants": variant.constants,
        # numbers by which Triton would choose another compilation
        "choosing": [name for name, value in variant.arguments.items() if isinstance(value, int) and name not in taken_as_are],
        "matrix_instructions": sorted(set(MATRIX.findall(text))),
        "num_matrix_instructions": len(MATRIX.findall(text)),
        "chains": chains(text),
        "atomics": len(re.findall(r"\b(?:atom|red)\.", text)),
        "multiply_adds": len(re.findall(r"fma\.rn\.f32", text)),
        "wide_copies": len(re.findall(r"cp\.async\.cg", text)),
        "narrow_copies": len(re.findall(r"cp\.async\.ca", text)),
        "reads_all_before_it_writes": text.rfind("ld.global") < text.rfind("bar.sync") < text.find("st.global"),
        "shared_bytes": done.metadata.shared,
        **resources(done.asm["cubin"]),
    }


def chains(ptx: str) -> list[int] | None:
    """How many matrix instructions each set of accumulators goes through, one behind the other; None if one begins anywhere but where the last ended."""
    lengths: dict[str, int] = {}
    for written, added in MULTIPLY.findall(ptx):
        if written.split() != added.split():
            return None
        lengths[written] = lengths.get(written, 0) + 1
    return sorted(set(lengths.values()))


def resources(cubin: bytes) -> dict[str, int | None]:
    """Registers of a thread, and bytes of its stack, where spilled ones go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    return {"registers": int(found[1]), "stack": int(found[2])}


def in_own_process(module: str) -> list[dict[str, Any]]:
    """What became of `module`'s variants; skips the test where a tool is missing."""
    try:
        tools = knobs.nvidia.ptxas.path, knobs.nvidia.cuobjdump.path
    except RuntimeError as error:  # says which one is missing
        pytest.skip(str(error))
    if not all(Path(tool).is_file() for tool in tools):
        pytest.skip(f"this build of triton lacks one of {', '.join(tools)}")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__, module], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    json.dump([compile_variant(variant) for variant in import_module(sys.argv[1]).compiled()], sys.stdout, default=str)
