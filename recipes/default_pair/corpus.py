"""Step 1: text to tokens. Gathers documents, trains the tokenizer, writes `train.bin` and `heldout.bin`.

    python corpus.py --corpora ../../../shared/corpora --work /tmp/pair

Sources: the standard library of the running Python (PSF licence) and, from `--corpora`, tldr pages (CC-BY-4.0),
PEPs (public domain) and GSM8K train (MIT). One document in a hundred, chosen by the hash of its text, is held out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCAB_SIZE = 8192
# Digits one by one (arithmetic), words with their leading space, runs of white space whole (indentation).
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ ('Question: ' if m.role == 'user' else 'Answer: ') + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
# Tables, generated code and tests teach a small model to list and to repeat.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "lib2to3", "turtledemo"}
SHARES = {"stdlib": 1.0, "tldr": 1.0, "gsm8k-train": 1.0, "peps": 0.4}


def standard_library() -> Iterator[str]:
    root = Path(os.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts):
            yield path.read_text(encoding="utf-8", errors="ignore")


def corpus(folder: Path, name: str) -> Iterator[str]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def bucket(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def documents(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, share in SHARES.items():
        texts = standard_library() if name == "stdlib" else corpus(folder, name)
        unique = dict.fromkeys(text.strip() + "\n" for text in texts if text.strip())
        found[name] = [text for text in unique if bucket(text + "#share") < share]
    return found


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    end_id = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END,
        model_max_length=1024, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder with *.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything this recipe makes")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    by_source = documents(args.corpora)
    texts = [text for source in by_source.values() for text in source]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(args.work / "tokenizer")

    random.Random(0).shuffle(texts)
    ids = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]
    heldout = [bucket(text) < 0.01 for text in texts]
    counts = {"documents": {name: len(source) for name, source in by_source.items()}}
    for name, wanted in (("train", False), ("heldout", True)):
        stream = np.concatenate([np.array(doc, dtype=np.uint16) for doc, out in zip(ids, heldout, strict=True) if out == wanted])
        stream.tofile(args.work / f"{name}.bin")
        counts[f"{name}_tokens"] = len(stream)
    (args.work / "corpus.json").write_text(json.dumps(counts, indent=2))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
