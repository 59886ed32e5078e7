"""Random languages under random drafts: is the output in the language, and the same with speculation off?

    python scripts/structured.py --count 1000 --output benchmarks/structured.json

A tiny random model writes in each language of tests/languages.py, plain and under several drafters. Complete outputs are checked by a
check of their own; those cut at `max_tokens` must be a beginning that a fresh matcher admits.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import hostile  # noqa: E402
from languages import Language, make_language  # noqa: E402
from tiny_models import EOS, VOCAB_SIZE, make_drafter, make_model, make_tokenizer  # noqa: E402

from forerun import LLM, RequestOutput, SamplingParams  # noqa: E402
from forerun.machine import git_commit, hardware, versions  # noqa: E402
from forerun.sampling.grammar import Grammars  # noqa: E402

MAX_TOKENS = 64
LENGTHS = (1, 3, 8, "auto")
PROMPTS = ("to be or not", "in the inn there is a tin. in the inn there is", "{")


class Engines:
    """One engine a drafter; the first is plain."""

    def __init__(self) -> None:
        tokenizer = make_tokenizer()
        self.grammars = Grammars(tokenizer, VOCAB_SIZE, (EOS,))
        self.plain = LLM(make_model("llama", "fp32"), None, tokenizer=tokenizer)
        drafters = {"grammar_walk": hostile.GrammarWalk(), "random": hostile.Random(), "draft_model": make_drafter("fp32"), "prompt_lookup": "prompt_lookup"}
        self.speculative = {name: LLM(make_model("llama", "fp32"), drafter, tokenizer=tokenizer) for name, drafter in drafters.items()}

    def holds(self, language: Language, output: RequestOutput) -> bool:
        """In the language; of an output cut short: admitted by it so far."""
        if output.finish_reason == "stop":
            return language.contains(output.text)
        return self.grammars.start(language.asked).admits(output.token_ids)

    def run(self, seed: int) -> Counter[str]:
        """What one case shows: the outcome of each drafter, counted."""
        language = make_language(seed)
        temperature = (0.0, 0.7, 1.0)[seed % 3]
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS, structured_outputs=language.asked)
        prompt = PROMPTS[seed % len(PROMPTS)]
        found: Counter[str] = Counter(cases=1)
        [expected] = self.plain.generate(prompt, params)
        if expected.error is not None:
            return found + Counter(refused=1)
        found += Counter(outputs=1, complete=expected.finish_reason == "stop", in_language=self.holds(language, expected))
        for name, llm in self.speculative.items():
            length = LENGTHS[(seed + len(name)) % len(LENGTHS)]
            [output] = llm.generate(prompt, SamplingParams(**{**_fields(params), "num_draft_tokens": length}))
            if output.error is not None:
                found += Counter(outputs=1, failed=1)
                continue
            same = output.token_ids == expected.token_ids and output.text == expected.text and output.finish_reason == expected.finish_reason
            found += Counter(outputs=1, complete=output.finish_reason == "stop", in_language=self.holds(language, output), comparisons=1, on_equals_off=same)
            found += Counter(drafted=output.stats.num_draft_tokens, accepted=output.stats.num_accepted_tokens)
        return found


def _fields(params: SamplingParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in ("temperature", "seed", "max_tokens", "structured_outputs")}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0, help="of the first case")
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    engines = Engines()
    total: Counter[str] = Counter()
    crashes: list[str] = []
    for seed in range(given.seed, given.seed + given.count):
        try:
            found = engines.run(seed)
        except Exception as error:
            crashes.append(f"case {seed}: {type(error).__name__}: {error}")
            continue
        total += found
        if found["in_language"] < found["outputs"] or found["on_equals_off"] < found["comparisons"] or found["refused"]:
            print(f"case {seed}: {dict(found)}", file=sys.stderr)
    names = ("cases", "refused", "outputs", "complete", "in_language", "failed", "comparisons", "on_equals_off", "drafted", "accepted")
    origin = {"command": shlex.join(["python", *sys.argv]), "git_commit": git_commit(), "hardware": hardware(torch.device("cpu")), "versions": versions()}
    report = {**origin, "first_seed": given.seed, "max_tokens": MAX_TOKENS, **{name: total[name] for name in names}, "crashes": crashes}
    print(json.dumps(report, indent=2))
    if given.output is not None:
        given.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if not crashes and total["in_language"] == total["outputs"] and total["on_equals_off"] == total["comparisons"] else 1


if __name__ == "__main__":
    sys.exit(main())
