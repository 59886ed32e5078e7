"""Does `forerun certify` catch planted faults, and does it leave correct engines alone? Every double, many seeds, the checks that users run.

python scripts/certify_faults.py --output benchmarks/certify_faults.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from forerun.certify import CertifyConfig, certify
from forerun.certify.doubles import CORRECT, FAULTS, double
from forerun.machine import git_commit, versions
from forerun.prompts import bundled_prompts, spread

DISTANCES = (0.05, 0.1)  # the smallest fault here, reused noise, moves the law by less than 0.1, the command's own default
NUM_PROMPTS = 6


def examined(name: str, num_seeds: int, first_seed: int, distance: float) -> dict[str, Any]:
    """How often a double was not certified, and what spoke against it."""
    prompts = [each.text for each in spread(bundled_prompts(), NUM_PROMPTS)]
    accused: list[int] = []
    by_kind: dict[str, int] = {}
    smallest = 1.0
    for seed in range(first_seed, first_seed + num_seeds):
        found = certify(double(name), prompts, CertifyConfig(seed=seed, distance=distance))
        smallest = min([smallest, *(check.adjusted for check in found.checks if check.adjusted is not None)])
        if found.verdict == "not certified":
            accused.append(seed)
        for kind in {check.name for check in found.checks if check.status == "failed"}:
            by_kind[kind] = by_kind.get(kind, 0) + 1
    return {
        "correct": name in CORRECT,
        "num_seeds": num_seeds,
        "not_certified": len(accused),
        "by_check": by_kind,
        "smallest_adjusted_p": smallest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--num-seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--detect", type=float, nargs="+", default=DISTANCES)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    names = (*CORRECT, *FAULTS)
    found = {f"{each:g}": {name: examined(name, given.num_seeds, given.first_seed, each) for name in names} for each in given.detect}
    if given.output is not None:
        report = {"by_distance": found, "versions": versions(), "git_commit": git_commit()}
        given.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for distance, doubles in found.items():
        for name, one in doubles.items():
            print(
                f"{distance:5} {name:20} {'correct' if one['correct'] else 'faulty':8} not certified: {one['not_certified']}/{one['num_seeds']}  {one['by_check']}"
            )


if __name__ == "__main__":
    main()
