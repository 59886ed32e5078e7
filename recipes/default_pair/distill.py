"""Step 4: the drafter, one layer, distilled from the target on the target's own text and on the corpus. Resumes.

    python distill.py --work /tmp/pair --minutes 25

The loss is lambda * KL(target || drafter) + (1 - lambda) * TV with lambda = exp(-3 * overlap): KL while they are far apart, then the
total variation, which is what the acceptance of a draft depends on (LK losses, arXiv 2602.23881).
GPT-2's block has a third of the operators of a Llama block, and a drafter this small spends its time between operators.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from training import CONTEXT, VOCAB_SIZE, Clock, Stream, optimizers, train
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

LENGTH = 256


def drafter_like(target: LlamaForCausalLM) -> GPT2LMHeadModel:
    """One layer of the target's width, starting from the target's embeddings and final norm: its logits begin on their scale."""
    torch.manual_seed(0)
    width = target.config.hidden_size
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=width, n_layer=1, n_head=4, n_inner=4 * width, n_positions=CONTEXT,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(target.get_input_embeddings().weight)
        model.transformer.ln_f.weight.copy_(target.model.norm.weight)
    return model


def divergence(target_logits: torch.Tensor, drafter_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and overlap (mean of sum min(p, q), the acceptance of the best single-draft rule)."""
    p_log = target_logits.float().log_softmax(-1)
    q_log = drafter_logits.float().log_softmax(-1)
    p, q = p_log.exp(), q_log.exp()
    overlap = torch.minimum(p, q).sum(-1).mean()
    kl = (p * (p_log - q_log)).sum(-1).mean()
    weight = torch.exp(-3.0 * overlap.detach())
    return weight * kl + (1.0 - weight) * (1.0 - overlap), overlap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the trained target and sampled.bin")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    args = parser.parse_args()

    target = LlamaForCausalLM.from_pretrained(args.work / "target", dtype=torch.bfloat16).eval().requires_grad_(False)
    model = drafter_like(target)
    both = torch.compile(divergence)

    def compared(ids: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = ids[:, :-1]
        with torch.inference_mode():
            expected = target(inputs, use_cache=False).logits
        positions = torch.arange(offset, offset + inputs.shape[1])[None]
        with torch.autocast("cpu", torch.bfloat16):
            drafted = model(inputs, position_ids=positions, use_cache=False).logits
        return both(expected.clone(), drafted)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        offset = int(torch.randint(CONTEXT - LENGTH, ()))  # learned positions: all of them must be met
        return compared(ids, offset)[0]

    heldout = Stream.read(args.work / "heldout.bin")

    @torch.no_grad()
    def held_out_overlap() -> float:
        ids = torch.from_numpy(heldout.tokens[: 64 * (LENGTH + 1)].astype("int64")).view(-1, LENGTH + 1)
        return sum(compared(part, 0)[1].item() for part in ids.split(16)) / len(ids.split(16))

    sampled = args.work / "sampled.bin"
    clock = Clock(args.minutes)
    train(
        model, Stream.read(*[sampled] * 4, args.work / "train.bin"), loss_of, optimizers(model, muon_lr=0.006, adam_lr=0.003), clock,
        checkpoint=args.work / "drafter.pt", shape_of=lambda progress: (args.tokens_per_step // LENGTH, LENGTH),
        held_out=held_out_overlap,
    )  # fmt: skip
    folder = args.work / "drafter"
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer").save_pretrained(folder)
    facts = {"tokens": clock.tokens, "steps": clock.steps, "held_out_overlap": held_out_overlap()}
    (args.work / "drafter.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
