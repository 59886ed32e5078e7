"""Calls in answers: every format, cut into any pieces, and held to its schema by a grammar."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from tiny_models import make_tokenizer

from forerun.sampling.grammar_text import grammar_text
from forerun.server.tools import TOOL_PARSERS, ToolFormat, ToolUse, held_answer, parser_of_template, tool_parser, written_out
from forerun.server.tools.json_call import read_call
from forerun.server.tools.python_calls import read_python_calls
from forerun.types import InvalidInputError, StreamedToken

NAMES = frozenset({"look", "go.to-it"})
LOOK = '{"name": "look", "arguments": {"at": "a \\"quoted\\" } text", "n": [1, {"x": 1.50}]}}'
ARGUMENTS = '{"at": "a \\"quoted\\" } text", "n": [1, {"x": 1.50}]}'
GO = '{"name": "go.to-it"}'


def parse(name, pieces, names=NAMES, **how):
    """What is said, and (name, arguments) of what is called."""
    parser = tool_parser(name)(names, **how)
    said, called = "", []
    for delta in [*map(parser.feed, pieces), parser.finish()]:
        assert set(delta) <= {"content", "tool_calls"}
        said += delta.get("content", "")
        called += delta.get("tool_calls", [])
    assert [call["index"] for call in called] == list(range(len(called)))
    assert len({call["id"] for call in called}) == len(called)
    assert all(call["type"] == "function" and len(call["id"]) == 29 and call["id"].startswith("call_") for call in called)
    assert parser.has_tool_calls == bool(called)
    return said, [(call["function"]["name"], call["function"]["arguments"]) for call in called]


BOTH = [("look", ARGUMENTS), ("go.to-it", "{}")]
CASES = [
    ("hermes", f"<tool_call>\n{LOOK}\n</tool_call>\n<tool_call>{GO}</tool_call>", "", BOTH),
    ("hermes", f"I look: <tool_call>{LOOK}</tool_call> \n", "I look: ", BOTH[:1]),
    ("hermes", f"<tool_call>{LOOK}", "", BOTH[:1]),
    ("hermes", f"<tool_call>{LOOK}</tool_call> and <tool", " and <tool", BOTH[:1]),
    ("hermes", '<tool_call>{"name": "look", "arguments": {"at": "</tool_call>"}}</tool_call>', "", [("look", '{"at": "</tool_call>"}')]),
    ("hermes", f"<tool_call><tool_call>{GO}</tool_call>", "<tool_call>", BOTH[1:]),
    ("llama3_json", LOOK.replace("arguments", "parameters"), "", BOTH[:1]),
    ("llama3_json", f"  <|python_tag|>{LOOK}; {GO}", "", BOTH),
    ("llama3_json", f"Well. <|python_tag|>{GO}", "Well. ", BOTH[1:]),
    ("llama3_json", f"Well. {GO}", f"Well. {GO}", []),
    ("llama3_json", f"{GO};\n no", ";\n no", BOTH[1:]),
    ("json", f"{LOOK}\n{GO}", "", BOTH),
    ("json", f"{LOOK} that is it", " that is it", BOTH[:1]),
    ("json", '{"a": 1} is JSON', '{"a": 1} is JSON', []),
    ("mistral", f"[TOOL_CALLS][{LOOK}, {GO}]", "", BOTH),
    ("mistral", f"Ah [TOOL_CALLS] [{GO}] ", "Ah ", BOTH[1:]),
    ("mistral", f"[TOOL_CALLS]look[ARGS]{ARGUMENTS}[TOOL_CALLS]go.to-it{{}}", "", BOTH),
    ("mistral_args", f"[TOOL_CALLS]look[ARGS]{ARGUMENTS}", "", BOTH[:1]),
    ("mistral", "[TOOL_CALLS][[1]]", "[TOOL_CALLS][[1]]", []),
    ("mistral", "[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
    ("pythonic", "[look(at='it\\'s', n=[1, -2.5, {'x': (True, None)}], b=false), ]", "", [("look", '{"at": "it\'s", "n": [1, -2.5, {"x": [true, null]}], "b": false}')]),
    ("pythonic", '[look(at="\\ud83d\\ude00 \\/ ]"), look()]', "", [("look", '{"at": "😀 / ]"}'), ("look", "{}")]),
    ("pythonic", "[1, 2] are numbers", "[1, 2] are numbers", []),
    ("pythonic", "Say [look()]", "Say [look()]", []),
]  # fmt: skip


@pytest.mark.parametrize("name, text, said, called", CASES)
def test_calls_are_found_however_the_text_is_cut(name, text, said, called):
    assert parse(name, [text]) == (said, called)
    assert parse(name, list(text)) == (said, called)
    for at in range(len(text)):
        assert parse(name, [text[:at], text[at:]]) == (said, called), at


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<tool", "_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", LOOK, GO, ARGUMENTS, "[", "]", "{", "}", "(", ")", '"', "'",
    "\\", ",", ";", " ", "\n", "look", "look()", "[look(at=1)]", "a", "é", ":", '"name"', "=",
]  # fmt: skip


@given(st.sampled_from(sorted(TOOL_PARSERS)), st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.randoms(use_true_random=False))
def test_pieces_make_no_difference(name, fragments, rng):
    text = "".join(fragments)
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(name, [text])
    assert parse(name, pieces) == parse(name, list(text)) == whole
    if not whole[1]:
        assert whole[0] == text  # nothing is lost where nothing is called


MALFORMED = [
    '{"name": "other", "arguments": {}}', '{"name": "look", "arguments": []}', '{"name": "look", "arguments": "{}"}', '{"name": 1}', "{}", '{"name": "look", "more": 1}',
    '{"name": "look", "name": "look"}', '{"name": "look", "arguments": {}, "parameters": {}}', '{"name": "look", "arguments": {"a": NaN}}', '{"name": "look",}',
    "{'name': 'look'}", '{"name": "look" "arguments": {}}', '{"name": "look", "arguments": {"a": "\n"}}', '{"name": "look"]', '{"name": "look", "arguments": {"a": ' + "9" * 5000 + "}}",
    '{"name": "look", "arguments": ' + '{"a":' * 80 + "1" + "}" * 81 + "}", '{"name": "look", "arguments": {"a": "',
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
@pytest.mark.parametrize("name, around", [("hermes", "<tool_call>{}</tool_call>"), ("llama3_json", "{}"), ("json", "{}"), ("mistral", "[TOOL_CALLS][{}]")])
def test_malformed_calls_stay_text(name, around, text):
    text = around.replace("{}", text)
    assert parse(name, [text]) == parse(name, list(text)) == (text, [])


@pytest.mark.parametrize("text", [
    "[look(1)]", "[look(*a)]", "[look(a=b)]", "[look(a=__import__('os'))]", "[look(a=open('x').read())]", "[look(a=1+1)]", "[look(a=lambda: 1)]", "[look(a={1})]",
    "[other()]", "[look(a=1, a=2)]", "[look(a=1e999)]", "[look(a=b'x')]", "[look(a=f'{1}')]", "[look(a='\\ud800')]", "[look(a='\n')]", "[look(a=[x for x in (1,)])]",
    "[look(a=-)]", "[look(a=1j)]", "[look().b()]", "[look", "[look(a=" + "9" * 5000 + ")]", "[look(a=" + "[" * 100 + "]" * 100 + ")]", "[look(a=" + "-" * 9999 + "1)]", "[look)]", "[look(a='\\0\0')]",
])  # fmt: skip
def test_nothing_python_would_run_is_a_call(text):
    assert parse("pythonic", [text]) == parse("pythonic", list(text)) == (text, [])


def test_long_answers_take_their_length_and_no_more():
    """Quadratic work on these would take minutes."""
    nested = "<tool_call>" * 50_000 + "{" * 300_000
    assert parse("hermes", [nested[at : at + 7] for at in range(0, len(nested), 7)]) == (nested, [])
    strings = '{"name": "look", "arguments": {"a": "' + "\\\\" * 300_000 + '"}}'
    assert parse("json", [strings[at : at + 5] for at in range(0, len(strings), 5)])[1][0][0] == "look"
    assert parse("pythonic", ["[look(a='" + "x" * 300_000])[1] == []


def test_arguments_keep_their_text():
    assert read_call('{"arguments": {"a": 1e400,  "b": 1.10}, "name": "look"}', NAMES) == ("look", '{"a": 1e400,  "b": 1.10}')


def test_python_literals_are_read_as_python_does():
    assert read_python_calls("[f(a='\\x41\\n', b=\"it's\", c='\\d', d=\"\\d\", e=-0.5e3)]") == [("f", {"a": "A\n", "b": "it's", "c": "\\d", "d": "\\d", "e": -500.0})]


TEMPLATES = {
    "hermes": "{% if tools %}<tool_call>\n{\"name\": <function-name>}{% endif %}", "mistral": "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]",
    "mistral_args": "{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", "llama3_json": "{{ tools }}<|python_tag|>", "pythonic": "{{ tools }}[func_name1(params_name1=params_value1)]",
    "json": "{{ messages }}",
}  # fmt: skip


@pytest.mark.parametrize("name, template", [*TEMPLATES.items(), ("json", None), ("json", "{{ tools }}<tool_call><function=a>"), ("json", "{{ tools }}")])
def test_the_template_says_which_format_its_model_writes(name, template):
    assert parser_of_template(template).name == name


def test_an_unknown_format_is_refused():
    with pytest.raises(InvalidInputError, match="give one of hermes, llama3_json, mistral, mistral_args, pythonic, json"):
        tool_parser("other")


def tool(name="look", strict=False, **parameters):
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters or None, "strict": strict}}


LOOK_TOOL = tool("look", type="object", properties={"at": {"enum": ["here", "there"]}, "n": {"$ref": "#/$defs/n"}, "o": {"type": "boolean"}}, required=["n"], additionalProperties=False, **{"$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}})
GO_TOOL = tool("go_to")


def test_tool_choices():
    assert ToolUse.of(None, None, None) is None and ToolUse.of([LOOK_TOOL], "none", None) is None
    auto = ToolUse.of([LOOK_TOOL, GO_TOOL], None, None)
    assert auto.mode == "auto" and not auto.is_held and auto.names == {"look", "go_to"} and auto.most is None
    assert ToolUse.of([LOOK_TOOL], "auto", False).is_held
    assert ToolUse.of([tool(strict=True)], None, True).is_held
    named = ToolUse.of([LOOK_TOOL, GO_TOOL], {"type": "function", "function": {"name": "go_to"}}, None)
    assert named.mode == "required" and named.names == {"go_to"} and named.most == 1 and len(named.described) == 2
    some = ToolUse.of([LOOK_TOOL, GO_TOOL], {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "look"}}]}}, None)
    assert some.mode == "auto" and some.names == {"look"}


@pytest.mark.parametrize("tools, choice, field", [
    (None, "required", "tool_choice"), (None, {"type": "function", "function": {"name": "a"}}, "tool_choice"), ([LOOK_TOOL], "any", "tool_choice"),
    ([LOOK_TOOL], {"type": "function", "function": {"name": "a"}}, "tool_choice"), ([LOOK_TOOL, LOOK_TOOL], None, "tools"), ([tool("a b")], None, "tools[0].function.name"),
    ([tool("<|im_end|>")], None, "tools[0].function.name"), ([LOOK_TOOL, {"type": "code"}], None, "tools[1].type"), ([tool(type="array")], None, "tools[0].function.parameters"),
    ([tool(f"a{i}") for i in range(129)], None, "tools"), ([LOOK_TOOL], {"type": "function"}, "tool_choice"), ([LOOK_TOOL], {"type": "allowed_tools", "allowed_tools": {}}, "tool_choice"),
])  # fmt: skip
def test_bad_tools_are_refused_by_name(tools, choice, field):
    with pytest.raises(InvalidInputError) as caught:
        ToolUse.of(tools, choice, None)
    assert caught.value.field == field


TOKENIZER = make_tokenizer()
LL_TOKENIZER = from_tokenizer(TOKENIZER, n_vocab=320, eos_token=[257])


def matcher_of(asked):
    matcher = LLMatcher(LL_TOKENIZER, grammar_text(*asked.chosen), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def written_at_random(asked, seed):
    """A sentence of the grammar, each token drawn from those allowed."""
    matcher, rng, ids = matcher_of(asked), random.Random(seed), []
    for _ in range(2000):
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(320) if mask[i // 8] >> i % 8 & 1]
        if 257 in allowed and rng.random() < 0.2 or allowed == [257]:
            return TOKENIZER.decode(ids)
        ids.append(rng.choice([i for i in allowed if i != 257]))
        matcher.consume_token(ids[-1])
    return None


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_a_held_answer_is_a_valid_call_whatever_the_model(name):
    parser = tool_parser(name)
    for choice, parallel in (("required", None), ("required", False), ({"type": "function", "function": {"name": "look"}}, None)):
        use = ToolUse.of([LOOK_TOOL, GO_TOOL], choice, parallel)
        asked = held_answer(use, parser, lambda mark: None)
        for seed in range(12):
            text = written_at_random(asked, seed)
            said, called = parse(name, [text], use.names, only_bare=parser.bare)
            assert said == "" and 1 <= len(called) <= (use.most or 8), text
            for called_name, arguments in called:
                values = json.loads(arguments)
                assert called_name in use.names and set(values) <= {"at", "n", "o"}
                assert called_name == "go_to" or values["n"] in range(10)


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_strict_tools_leave_the_choice_and_hold_the_call(name):
    parser = tool_parser(name)
    strict = {**LOOK_TOOL, "function": {**LOOK_TOOL["function"], "strict": True}}
    use = ToolUse.of([strict], "auto", False)
    asked = held_answer(use, parser, lambda mark: None)

    def accepts(text):
        matcher, ids = matcher_of(asked), TOKENIZER(text).input_ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    good, bad = (parser.described([("look", arguments)]).replace("True", "true") for arguments in ('{"n": 1}', '{"n": 100}'))
    assert accepts("Just text.\n") and accepts("") and accepts(good) and not accepts(bad) and not accepts(good + good)
    assert parser.bare or (accepts("First: " + good) and not accepts("First: " + bad))


def test_marks_that_are_special_tokens_are_written_as_such():
    use = ToolUse.of([GO_TOOL], "required", None)
    text = held_answer(use, tool_parser("mistral_args"), {"[TOOL_CALLS]": 5, "[ARGS]": 6}.get).grammar
    assert 'start: <[5]> behind' in text and '"go_to" <[6]>' in text and "TOOL_CALLS" not in text
    matcher_of(held_answer(ToolUse.of([GO_TOOL], "auto", False), tool_parser("mistral_args"), {"[TOOL_CALLS]": 256, "[ARGS]": 257}.get))


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_calls_are_written_as_they_are_read(name):
    calls = [("look", '{"at": "a\\nb", "n": [1, null, true]}'), ("look", "{}")]
    said, called = parse(name, [tool_parser(name).described(calls)])
    assert said == "" and [(each, json.loads(arguments)) for each, arguments in called] == [(each, json.loads(arguments)) for each, arguments in calls]


def test_a_template_without_tools_gets_them_in_words():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Look"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
    ]
    plain = written_out(messages, [LOOK_TOOL], "{{ system }}")
    assert [message["role"] for message in plain] == ["system", "user", "assistant", "user"]
    assert '"look"' in plain[0]["content"] and plain[2]["content"] == '{"name": "look", "arguments": {"n": 1}}'
    assert "tool_calls" not in plain[2] and plain[3]["content"] == "Result of look:\nseen"
    assert parse("json", [plain[2]["content"]]) == ("", [("look", '{"n": 1}')])
    first, *_ = written_out(messages, [LOOK_TOOL], "{{ messages }}")
    assert first["role"] == "user" and first["content"].endswith("\nLook")
    assert written_out([{"role": "system", "content": "s"}, messages[0]], [LOOK_TOOL], "{{ system }}")[0]["content"].endswith("\ns")
    with pytest.raises(InvalidInputError, match="JSON objects"):
        written_out([{"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": "["}}]}], [], "")


def test_marks_that_texts_leave_out_are_put_back():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    form = ToolFormat(tokenizer, "{{ tools }}[TOOL_CALLS]")
    mark = tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    text = form.text([StreamedToken(65, "A", "plain"), StreamedToken(mark, "", "plain"), StreamedToken(66, f"[{GO}]", "plain")])
    assert parse(form.parser.name, [text]) == ("A", [("go.to-it", "{}")])
    assert f"<[{mark}]>" in form.held(ToolUse.of([GO_TOOL], "required", None), None).grammar
    with pytest.raises(InvalidInputError, match="the chat template knows no tools"):
        ToolFormat(tokenizer, "{{ messages }}", "hermes")
