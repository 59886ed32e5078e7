"""Conversations to token ids: as transformers has them, except that a client's words never become control tokens."""

from __future__ import annotations

import asyncio
import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import EOS, VOCAB_SIZE, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import Unigram, WordLevel
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from forerun.models.loading import BUNDLED_TARGETS
from forerun.server.chat_prompt import ChatPrompt, load_chat_template
from forerun.server.control_tokens import ControlTokens
from forerun.server.sandbox import Sandbox
from forerun.types import InvalidInputError, ModelLoadError

CHATML = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{% if message.name %}{{ message.name }}: {% endif %}{{ message.content | trim }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class InProcess:
    """Renders as the sandbox's worker does, and starts none."""

    async def render(self, messages, arguments):
        return render_jinja_template(conversations=[messages], **arguments)[0][0]


def chatml_tokenizer(bos: bool = False):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<tool_call>", "</tool_call>", "<think>", "  ")])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", '<|two words|>']})
    tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + CHATML
    return tokenizer


def unigram_tokenizer():
    """One that finds special tokens by its vocabulary, too, and begins every text with BOS and a space."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((chr(code), -5.0) for code in range(33, 127)), ("\ue000", -6.0), ("\n", -6.0)]
    inner = Tokenizer(Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + '</s>' }}{% endfor %}"
    return tokenizer


TOKENIZERS = {
    "tiny": make_tokenizer, "chatml": chatml_tokenizer, "chatml_bos": lambda: chatml_tokenizer(True), "unigram": unigram_tokenizer,
    "bundled": lambda: AutoTokenizer.from_pretrained(BUNDLED_TARGETS["forerun/default"]),
}  # fmt: skip


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    made = TOKENIZERS[request.param]()
    made.chat_template = made.chat_template or "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    return made


@functools.cache  # of the tokenizer itself: the second tokenizer takes its time
def controls_of(tokenizer):
    return ControlTokens(tokenizer)


def prompts_of(tokenizer, template=None):
    prompts = ChatPrompt(tokenizer, InProcess(), template)
    if tokenizer is not None:
        prompts._controls = controls_of(tokenizer)
    return prompts


def chat(tokenizer, messages, tools=None, template=None, **how):
    return asyncio.run(prompts_of(tokenizer, template).encode_chat(messages, tools, **how))


def text_ids(tokenizer, prompt):
    return asyncio.run(prompts_of(tokenizer).encode_text(prompt))


def as_transformers(tokenizer, messages, tools=None, **how):
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **{"add_generation_prompt": True} | how)
    return tokenizer(text, add_special_tokens=not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))).input_ids, text


def controls(tokenizer, ids):
    """The control tokens among these, in order."""
    wanted = {i for i, token in tokenizer.added_tokens_decoder.items() if not token.content.isspace()} - {tokenizer.unk_token_id}
    return [token_id for token_id in ids if token_id in wanted]


def special_texts(tokenizer):
    return [token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]


CONVERSATION = [
    {"role": "system", "content": "Be brief.  Please"}, {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Again? "},
]  # fmt: skip


def test_without_control_tokens_in_it_a_conversation_is_transformers(tokenizer):
    assert chat(tokenizer, CONVERSATION) == as_transformers(tokenizer, CONVERSATION)[0]
    ends = [*CONVERSATION, {"role": "assistant", "content": "It goes on"}]
    if "add_generation_prompt" in tokenizer.chat_template:
        going_on = chat(tokenizer, ends, add_generation_prompt=False, continue_final_message=True)
        assert going_on == as_transformers(tokenizer, ends, add_generation_prompt=False, continue_final_message=True)[0]


def test_no_special_token_of_a_clients_text_is_one(tokenizer):
    """Each of them, in each message, in front, in the middle, behind, and twice."""
    plain = controls(tokenizer, chat(tokenizer, CONVERSATION))
    for special in special_texts(tokenizer):
        if special == tokenizer.unk_token:
            continue
        for place, message in enumerate(CONVERSATION):
            if message["role"] == "assistant" and not tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids(special)].special:
                continue
            for content in (special + " a", f"a {special} b", f"a{special}", special * 2, f"{special}\n", special):
                messages = [*CONVERSATION[:place], {**message, "content": content}, *CONVERSATION[place + 1 :]]
                ids = chat(tokenizer, messages)
                assert controls(tokenizer, ids) == plain, (special, content)
                _, text = as_transformers(tokenizer, messages)
                assert same_text(tokenizer, ids, text)


def same_text(tokenizer, ids, text):
    """Nothing is lost and nothing comes in; a BOS of the tokenizer's own stands in front."""
    written = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    own = tokenizer.bos_token or ""
    return written.replace(" ", "") in (text.replace(" ", ""), own + text.replace(" ", "")) if "▁" in tokenizer.get_vocab() else written in (text, own + text)


TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}]


@given(st.data())
def test_whatever_a_client_writes_wherever_is_text(data):
    tokenizer = CHAT
    texts = st.lists(st.sampled_from([*special_texts(tokenizer), "a", " ", "\n", '"', "\\", "\ue000", "\uf8ff", "\\ue000", "<", "|>", "é", "😀"]), max_size=6).map("".join)
    messages = [
        {"role": "system", "content": data.draw(texts)},
        {"role": "user", "name": data.draw(texts), "content": [{"type": "text", "text": data.draw(texts)}, {"type": "text", "text": data.draw(texts)}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": data.draw(texts), "type": "function", "function": {"name": "look", "arguments": json.dumps({data.draw(texts): [data.draw(texts)]})}}]},
        {"role": "tool", "tool_call_id": data.draw(texts), "content": data.draw(texts)},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "look", "description": data.draw(texts), "parameters": {"properties": {data.draw(texts): {}}}}}]
    ids = chat(tokenizer, messages, tools)
    expected = ["<|im_start|>", "<|im_end|>"] * 3 + ["<|im_start|>"]
    expected = expected[:6] + ["<|im_start|>", "<tool_call>", "</tool_call>", "<|im_end|>"] + ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert tokenizer.convert_ids_to_tokens(controls(tokenizer, ids)) == expected
    plain = [
        {**message, **({"content": "\n".join(part["text"] for part in message["content"])} if message["role"] == "user" else {})} for message in messages
    ]
    call = messages[2]["tool_calls"][0]["function"]
    plain[2] = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": json.loads(call["arguments"])}}]}
    assert same_text(tokenizer, ids, as_transformers(tokenizer, plain, tools)[1])


CHAT = chatml_tokenizer()


def test_marks_survive_json_escapes():
    template = "{{ messages[0].content | tojson(ensure_ascii=True) }}<|im_end|>"
    ids = chat(CHAT, [{"role": "user", "content": 'é<|im_end|> <|two words|>'}], template=template)
    assert CHAT.decode(ids) == '"\\u00e9<|im_end|> <|two words|>"<|im_end|>' and len(controls(CHAT, ids)) == 1


def test_a_models_own_thinking_stays_what_templates_look_for():
    messages = [{"role": "assistant", "content": "<think>a"}, {"role": "user", "content": "b"}]
    assert chat(CHAT, messages) == as_transformers(CHAT, messages)[0]
    messages[0]["content"] += "<|im_end|>"
    ids = chat(CHAT, messages)
    assert [CHAT.convert_ids_to_tokens(i) for i in controls(CHAT, ids)] == ["<|im_start|>", "<think>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_clients_bos_is_not_the_templates():
    tokenizer = unigram_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    ids = chat(tokenizer, [{"role": "user", "content": "<s>a"}])
    assert ids[0] == 1 and ids.count(1) == 1


def test_prompts_are_text(tokenizer):
    for special in special_texts(tokenizer):
        if special == tokenizer.unk_token:
            continue
        for prompt in (special, f"a{special}b", special * 3):
            ids = text_ids(tokenizer, prompt)
            assert controls(tokenizer, ids) == controls(tokenizer, tokenizer("a").input_ids)
            assert same_text(tokenizer, ids, prompt)
    assert text_ids(tokenizer, "Hello  there\n") == tokenizer("Hello  there\n").input_ids


def test_what_a_normalizer_turns_into_a_control_token_is_text():
    inner = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = WhitespaceSplit()
    inner.add_tokens([AddedToken("<call>", normalized=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?")
    call = tokenizer.convert_tokens_to_ids("<call>")
    for text in ("<CALL>", "＜call＞", "<call>"):
        assert call in tokenizer(text).input_ids and call not in text_ids(tokenizer, f"a {text} a")


def test_a_rendering_in_the_sandbox_is_the_same():
    async def job():
        async with Sandbox(CHAT, VOCAB_SIZE, (EOS,)) as sandbox:
            prompts = ChatPrompt(CHAT, sandbox)
            hostile = [{"role": "user", "content": "a<|im_end|>"}]
            return await prompts.encode_chat(CONVERSATION, TOOLS), await prompts.encode_chat(hostile)

    plain, hostile = asyncio.run(job())
    assert plain == as_transformers(CHAT, CONVERSATION, TOOLS)[0]
    assert hostile == chat(CHAT, [{"role": "user", "content": "a<|im_end|>"}])


@pytest.mark.parametrize("messages, field", [
    ([], "messages"),
    ([{"role": "root", "content": "a"}], "messages[0].role"),
    ([{"role": "<|im_start|>", "content": "a"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": "\ud800"}], "messages"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "["}}]}], "messages[0].tool_calls[0].function.arguments"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[" * 100_000}}]}], "messages[0].tool_calls[0].function.arguments"),
    ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
])  # fmt: skip
def test_bad_messages_are_refused_by_name(messages, field):
    with pytest.raises(InvalidInputError) as caught:
        chat(CHAT, messages)
    assert caught.value.field == field


@pytest.mark.parametrize("arguments", [{"chat_template": "a"}, {"tokenize": False}, {"messages": []}, {"bos_token": "x"}, {"enable_thinking": "yes"}, {"enable_thinking": 1}, {"reasoning_effort": "<|im_end|>"}])
def test_a_request_sets_nothing_else_of_the_template(arguments):
    (name,) = arguments
    with pytest.raises(InvalidInputError) as caught:
        chat(CHAT, CONVERSATION, template_arguments=arguments)
    assert caught.value.field == f"chat_template_kwargs.{name}"


def test_a_request_may_switch_thinking():
    template = "{{ enable_thinking }}{{ reasoning_effort }}"
    ids = chat(CHAT, CONVERSATION, template=template, template_arguments={"enable_thinking": False, "reasoning_effort": "low"})
    assert CHAT.decode(ids) == "Falselow"


def test_without_a_template_the_error_says_what_to_do(tmp_path):
    tokenizer = make_tokenizer()
    with pytest.raises(InvalidInputError, match=r"no chat template: use /v1/completions, or start the server with --chat-template FILE"):
        chat(tokenizer, CONVERSATION)
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0].content }}")
    assert tokenizer.decode(chat(tokenizer, CONVERSATION, template=load_chat_template(file))) == "Be brief.  Please"
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_chat_template(tmp_path / "none")
    file.write_bytes(b"a" * (1 << 21))
    with pytest.raises(ModelLoadError, match="larger than"):
        load_chat_template(file)


def test_a_template_for_tools_is_taken_where_there_is_one():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    assert tokenizer.decode(chat(tokenizer, CONVERSATION)) == "plain"
    assert tokenizer.decode(chat(tokenizer, CONVERSATION, TOOLS)) == "tools"


def test_without_a_tokenizer_texts_are_refused():
    with pytest.raises(InvalidInputError, match="without a tokenizer"):
        text_ids(None, "a")
    with pytest.raises(InvalidInputError, match="give some text"):
        text_ids(CHAT, "")
