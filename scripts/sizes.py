"""The file-size report of `make check`: what grew past a page, and whether the repository stays small enough to clone at ease.

Long files and functions are listed, not refused: they want a reason, not a number. Tracked files over 60 MB together are refused.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_TRACKED_BYTES = 60_000_000
NUM_LARGEST = 5


def tracked_files() -> list[Path]:
    """Files that git tracks, or every file outside hidden folders where this is no checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def long_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length of each function that is too long."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.name, node.lineno, length


def main() -> int:
    sources = sorted((ROOT / "src").rglob("*.py"))
    total_lines = 0
    for path in sources:
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        total_lines += num_lines
        name = path.relative_to(ROOT)
        if num_lines > MAX_FILE_LINES:
            print(f"long file      {name}: {num_lines} lines (over {MAX_FILE_LINES})")
        for function, line, length in long_functions(path):
            print(f"long function  {name}:{line} {function}: {length} lines (over {MAX_FUNCTION_LINES})")
    sizes = sorted(((path.stat().st_size, path) for path in tracked_files()), reverse=True)
    total = sum(size for size, _ in sizes)
    print(f"{len(sources)} source files, {total_lines:,} lines")
    print(f"{len(sizes)} tracked files, {total / 1e6:.1f} MB of at most {MAX_TRACKED_BYTES / 1e6:.0f} MB; the largest:")
    for size, path in sizes[:NUM_LARGEST]:
        print(f"  {size / 1e6:8.2f} MB  {path.relative_to(ROOT)}")
    if total > MAX_TRACKED_BYTES:
        print("too much: shrink or remove files, the repository must stay under the limit", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
