"""Structured output: in the language, whatever is drafted; and the matcher goes through the text alone."""

from __future__ import annotations

import json
from dataclasses import replace

import hostile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import make_language
from tiny_models import EOS, VOCAB_SIZE, make_model, make_tokenizer

from forerun import LLM, InvalidInputError, SamplingParams, StructuredOutputsParams, TokenTree
from forerun.sampling.grammar import Grammars
from forerun.sampling.path_state import PathState
from forerun.speculator.survival import Survival

GREEDY = SamplingParams(temperature=0.0, max_tokens=48)


@pytest.fixture(scope="session")
def grammars():
    return Grammars(make_tokenizer(), VOCAB_SIZE, (EOS,))


def allowed(state) -> list[int]:
    row = torch.zeros(VOCAB_SIZE)
    state.mask_(row)
    return row.isfinite().nonzero().flatten().tolist()


def regex(text: str, **more) -> SamplingParams:
    return replace(GREEDY, structured_outputs=StructuredOutputsParams(regex=text), **more)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 1.0]), st.sampled_from([1, 3, 8, "auto"]), st.sampled_from([hostile.GrammarWalk, hostile.Random]))
def test_random_languages_under_random_drafts(llm_of, grammars, case, temperature, length, kind):
    language = make_language(case)
    params = SamplingParams(temperature=temperature, seed=case, max_tokens=48, structured_outputs=language.asked, num_draft_tokens=length)
    llm = llm_of("fp32", "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine.speculator, "drafters", [kind()])
        plain, fast = llm.generate(["to be"] * 2, [replace(params, num_draft_tokens=0), params])
    if plain.error is not None:  # llguidance's reading of GBNF has no repetition of a repetition
        assert isinstance(plain.error, InvalidInputError) and language.asked.grammar is not None
        assert str(fast.error) == str(plain.error)
        return
    assert fast.token_ids == plain.token_ids
    if fast.finish_reason == "stop":
        assert language.contains(fast.text)
    else:
        assert grammars.start(language.asked).admits(fast.token_ids)


@pytest.mark.parametrize("kind", [hostile.GrammarWalk, hostile.Random, hostile.AlwaysWrong])
def test_a_rejected_branch_leaves_no_trace(with_drafters, grammars, kind):
    """After every step the matcher stands where a fresh one stands that was fed the text alone."""
    params = regex("(ab|ac|[a-d]{2}e)+f", temperature=1.0, seed=4, num_draft_tokens=5)
    drafter = kind() if kind is not hostile.AlwaysWrong else kind.of(with_drafters().generate("to be", params))
    engine = with_drafters(drafter).engine
    engine.add_request(make_tokenizer()("to be").input_ids, params)
    num_steps = 0
    while engine.has_unfinished_requests:
        [update] = engine.step()
        fresh = grammars.start(params.structured_outputs)
        for token_id in update.request.output_token_ids:
            fresh.advance(token_id)
        assert allowed(update.request.path_state.grammar) == allowed(fresh)
        num_steps += 1
    assert num_steps > 3


class Recorder:
    """Writes down the ids that it is called with; a copy writes into the same list."""

    def __init__(self, calls):
        self.calls = calls

    def __deepcopy__(self, memo):
        return Recorder(self.calls)

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.tolist())
        return scores


@pytest.mark.parametrize("kind", [hostile.Oracle, hostile.RightThenWrong, hostile.AlwaysWrong])
def test_a_processor_sees_the_calls_of_plain_decoding(with_drafters, kind):
    plain, fast = [], []
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=20, ignore_eos=True)
    expected = with_drafters().generate("to be", replace(params, logits_processors=(Recorder(plain),)))
    result = with_drafters(kind.of(expected)).generate("to be", replace(params, logits_processors=(Recorder(fast),), num_draft_tokens=4))
    assert result[0].token_ids == expected[0].token_ids
    assert fast == plain and len(plain) == 20


# -- drafts ----------------------------------------------------------------------------------------------------------


def test_prune_cuts_branches_that_leave_the_language(grammars):
    state = PathState(grammar=grammars.start(StructuredOutputsParams(regex="(ab|ac)+")))
    a, b, c, d = b"abcd"
    tree = TokenTree((a, d, b, c, d, a, EOS, a), (-1, -1, 0, 0, 2, 2, 3, 6))
    pruned = state.prune(tree)
    assert (pruned.token_ids, pruned.parents) == ((a, b, c, a, EOS), (-1, 0, 0, 1, 2))
    assert state.prune(TokenTree.chain([d, a])) == TokenTree()
    assert state.prune(TokenTree.chain([a, b, -1, 10**9])) == TokenTree.chain([a, b])
    assert allowed(state.grammar) == [a]  # nothing stayed behind


def test_drafts_that_leave_the_language_are_never_verified(with_drafters, monkeypatch):
    seen = []
    llm = with_drafters(hostile.Random())
    verify = llm.engine.verifier.verify
    monkeypatch.setattr(llm.engine.verifier, "verify", lambda batch, trees, logits: seen.extend(trees) or verify(batch, trees, logits))
    llm.generate("to be", regex("[a-y]{20}", num_draft_tokens=6, temperature=1.0, seed=2))
    drafted = [token_id for tree in seen for token_id in tree.token_ids]
    text = make_tokenizer().decode(drafted, skip_special_tokens=True)
    assert len(seen) > 5 and all("a" <= letter <= "y" for letter in text)


@pytest.mark.parametrize("length", ["auto", 6])
def test_forced_tokens_are_drafted_without_a_drafters_guess(with_drafters, monkeypatch, length):
    monkeypatch.setattr(Survival, "learn", lambda *_: pytest.fail("a drafter that guessed nothing"))
    llm = with_drafters(hostile.Empty())
    schema = {"const": "how much would"}
    [output] = llm.generate("to be", replace(GREEDY, structured_outputs=StructuredOutputsParams(json=schema), num_draft_tokens=length))
    assert json.loads(output.text) == "how much would" and output.finish_reason == "stop"
    assert output.stats.acceptance_length > 2
    assert output.stats.decisions["forced"] > 0 and set(output.stats.accepted_by) == {"grammar"}


def test_forced_tokens_say_nothing_about_the_drafters(with_drafters, monkeypatch):
    monkeypatch.setattr(Survival, "learn", lambda *_: pytest.fail("a drafter that guessed nothing"))
    [output] = with_drafters(hostile.Empty()).generate("to be", regex("[a-d]{3} how much would [a-d]{3}", num_draft_tokens="auto"))
    assert output.stats.num_accepted_tokens >= 8


@pytest.mark.parametrize("drafters", [[], [hostile.Empty()]])
def test_no_forced_tokens_where_speculation_is_off(with_drafters, drafters):
    [output] = with_drafters(*drafters).generate("to be", regex("how much would", num_draft_tokens=0 if drafters else "auto"))
    assert output.text == "how much would" and output.stats.num_draft_tokens == 0


# -- ends and conflicts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", ["plain", "draft_model"])
def test_the_end_token_ends_a_complete_output(llm_of, drafter):
    [output] = llm_of("fp32", drafter).generate("to be", regex("ab{3}", num_draft_tokens=4))
    assert (output.text, output.finish_reason, output.token_ids[-1]) == ("abbb", "stop", EOS)


@pytest.mark.parametrize("drafter", ["plain", "draft_model"])
@pytest.mark.parametrize(
    ("params", "named"),
    [
        (regex("abc", min_tokens=6), "min_tokens and structured_outputs"),
        (regex("abc", bad_words=["c"]), "bad_words and structured_outputs"),
        (regex("abc", logits_processors=[lambda ids, scores: scores.index_fill(1, torch.tensor([98]), -torch.inf)]), "structured_outputs and logits_processors"),
    ],
)
def test_what_leaves_no_token_ends_the_request_alone(llm_of, drafter, params, named):
    llm = llm_of("fp32", drafter)
    good, bad, other = llm.generate(["to be"] * 3, [GREEDY, replace(params, num_draft_tokens=3), regex("[ab]{9}")])
    assert f"{named}: every token at position" in str(bad.error)
    assert good.token_ids == llm.generate("to be", GREEDY)[0].token_ids and other.finish_reason == "stop"
    assert not llm.engine.has_unfinished_requests


@pytest.mark.parametrize("length", [0, 3])
def test_a_matcher_that_breaks_midway_ends_its_request_alone(with_drafters, length):
    engine = with_drafters(hostile.Random()).engine
    prompt = make_tokenizer()("to be").input_ids
    broken, whole = (engine.add_request(prompt, regex("[ab]{9}", num_draft_tokens=length))[0] for _ in range(2))
    done = {}
    for step in range(20):
        for update in engine.step() if engine.has_unfinished_requests else []:
            done[update.request.request_id] = update.request
        if step == 1:
            done[broken].path_state.grammar.matcher.consume_token(ord("z"))
    assert "structured_outputs: the grammar cannot go on" in str(done[broken].error)
    assert done[whole].finish_reason == "stop" and len(done[whole].detokenizer.text) == 9


BAD_LANGUAGES = {
    "regex": StructuredOutputsParams(regex="(a"),
    "look-ahead": StructuredOutputsParams(regex="a(?=b)"),
    "json text": StructuredOutputsParams(json='{"type": '),
    "json type": StructuredOutputsParams(json={"type": "nonsense"}),
    "json keyword": StructuredOutputsParams(json={"type": "array", "uniqueItems": True}),
    "grammar": StructuredOutputsParams(grammar='root ::= ("a" | \n'),
    "rule": StructuredOutputsParams(grammar='start: "a" b\n'),
}


@pytest.mark.parametrize("name", BAD_LANGUAGES)
def test_a_language_that_cannot_be_honoured_fails_alone(llm_of, name):
    bad, good = llm_of("fp32", "plain").generate(["to be"] * 2, [replace(GREEDY, structured_outputs=BAD_LANGUAGES[name]), regex("ab")])
    assert isinstance(bad.error, InvalidInputError) and str(bad.error).startswith("structured_outputs.")
    assert "\n" not in str(bad.error) and good.text == "ab"


def test_structured_outputs_need_a_tokenizer_and_an_end():
    without = LLM(make_model("llama", "fp32"), None)
    assert "give a tokenizer" in str(without.generate([5], regex("ab"))[0].error)
    assert "give a tokenizer" in str(without.generate([5], replace(GREEDY, bad_words=["a"]))[0].error)
    model = make_model("llama", "fp32")
    model.generation_config.eos_token_id = None
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert "no end token" in str(LLM(model, None, tokenizer=tokenizer).generate("to", regex("ab"))[0].error)


def test_a_vocabulary_past_the_tokenizer_and_several_ends():
    grammars = Grammars(make_tokenizer(), VOCAB_SIZE + 40, (EOS, 256))
    state = grammars.start(StructuredOutputsParams(regex="a"))
    row = torch.zeros(VOCAB_SIZE + 40)
    state.mask_(row)
    assert row.isfinite().nonzero().flatten().tolist() == [ord("a")]
    state.advance(ord("a"))
    assert allowed(state) == [256, EOS]
    assert state.forced_token_ids() == []  # either end may come
    narrow = torch.zeros(100)  # a drafter with fewer tokens
    grammars.start(StructuredOutputsParams(regex="a")).mask_(narrow)
    assert narrow.isfinite().nonzero().flatten().tolist() == [ord("a")]


def test_a_grammar_is_compiled_once(grammars, monkeypatch):
    asked = StructuredOutputsParams(regex="x{3}y{4}")
    first = grammars.start(asked)
    monkeypatch.setattr("forerun.sampling.grammar.LLMatcher", None)
    first.advance(ord("x"))
    assert allowed(grammars.start(asked)) == [ord("x")]
    assert not grammars.start(asked).admits([ord("y")])


def test_the_stream_is_in_the_language(llm_of):
    text = "".join(token.text for token in llm_of("fp32", "draft_model").stream("to be", regex("[ab]{4}(c|d)", num_draft_tokens=4)))
    assert len(text) == 5 and set(text[:4]) <= {"a", "b"} and text[4] in "cd"
