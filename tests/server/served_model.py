"""The engine of servers that tests break or ask through other clients."""

from __future__ import annotations

from tiny_models import make_drafter, make_model, make_tokenizer

from forerun import LLM

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] or '' }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def served_llm(**more) -> LLM:
    """The tiny Llama with two drafters and a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return LLM(make_model("llama", "fp32"), ["prompt_lookup", make_drafter("fp32")], tokenizer=tokenizer, max_num_seqs=6, **more)
