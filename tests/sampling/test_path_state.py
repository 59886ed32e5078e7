"""Bad words and processors of one's own, row by row; and what breaks in them."""

from __future__ import annotations

import threading
from dataclasses import replace

import hostile
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forerun import InvalidInputError, RequestFailedError, SamplingParams
from forerun.sampling.bad_words import bad_word_token_ids, mask_bad_words_
from forerun.sampling.path_state import PathState
from forerun.sampling.processors import process

NEVER = float("-inf")


def forbidden(bad_words, output) -> list[int]:
    row = torch.zeros(10)
    mask_bad_words_(row, bad_words, output)
    return row.isneginf().nonzero().flatten().tolist()


# -- bad words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected"),
    [([], [7]), ([1], [2, 7]), ([1, 2], [3, 7]), ([3, 1], [2, 7]), ([2, 1, 5], [7]), ([1, 1, 2], [3, 7])],
)
def test_the_last_token_of_a_word_is_forbidden_behind_the_others(output, expected):
    assert forbidden([(7,), (1, 2), (1, 2, 3)], output) == expected


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=4), st.lists(st.integers(0, 3), max_size=30))
def test_no_text_that_obeys_holds_a_bad_word(bad_words, wishes):
    text: list[int] = []
    for wish in wishes:
        if wish not in forbidden(bad_words, text):
            text.append(wish)
    assert not any(tuple(text[i : i + len(word)]) == word for word in bad_words for i in range(len(text)))


def test_words_are_meant_at_the_start_and_behind_a_space(tokenizer):
    assert bad_word_token_ids(["tea", " x", "\n"], tokenizer, 320) == tuple(
        tuple(tokenizer.encode(text)) for text in ("tea", " tea", "x", " x", "\n", " \n")
    )


def test_what_the_target_cannot_write_needs_no_mask(tokenizer):
    assert bad_word_token_ids(["in", "z"], tokenizer, 257) == ((ord("z"),), (32, ord("z")))  # "in" is one token past these


def test_a_bad_word_is_not_written(llm_of):
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=60, logit_bias={97: 30.0, 98: 30.0, 99: 30.0}, ignore_eos=True)
    free = llm_of("fp32", "plain").generate("to be", params)[0].text
    for drafter in ("plain", "draft_model"):
        text = llm_of("fp32", drafter).generate("to be", replace(params, bad_words=["ab", "cca", "bb"]))[0].text
        assert len(text) == 60 and not any(word in text for word in ("ab", "cca", "bb"))
    assert any(word in free for word in ("ab", "cca", "bb"))


# -- processors ------------------------------------------------------------------------------------------------------


def through(*processors, **asked):
    params = SamplingParams(**{"temperature": 1.0, "logits_processors": processors, **asked})
    state = PathState.of((), None, params.logits_processors)
    return process(torch.tensor([1.0, 2.0, 3.0, 4.0]), params, [0, 1], [2], [3], state)


def test_processors_run_in_order_with_the_whole_text():
    seen = []

    def first(input_ids, scores):
        seen.append((input_ids.dtype, input_ids.tolist(), scores.dtype, tuple(scores.shape)))
        return scores + 1

    assert through(first, lambda ids, scores: scores * 2).tolist() == [4.0, 6.0, 8.0, 10.0]
    assert seen == [(torch.int64, [[0, 1, 2]], torch.float32, (1, 4))]


def test_they_run_behind_bias_and_penalties_and_before_the_temperature():
    row = through(lambda ids, scores: scores * 10, logit_bias={0: 5.0}, presence_penalty=1.0, temperature=0.5)
    assert row.tolist() == [120.0, 40.0, 40.0, 80.0]


def test_truncation_acts_on_what_they_leave():
    assert through(lambda ids, scores: -scores, top_k=1).tolist() == [-1.0, NEVER, NEVER, NEVER]


def test_they_may_forbid_and_never_allow_again():
    row = through(lambda ids, scores: torch.zeros_like(scores), min_tokens=5)
    assert row.tolist() == [0.0, 0.0, 0.0, NEVER]


def test_the_targets_logits_stay_as_they_are():
    logits = torch.tensor([1.0, 2.0])
    state = PathState.of((), None, (lambda ids, scores: scores.mul_(9),))
    process(logits, SamplingParams(logits_processors=(print,)), [0], [], [], state)
    assert logits.tolist() == [1.0, 2.0]


def breaks(input_ids, scores):
    raise ValueError("out of ideas")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (breaks, "breaks failed with ValueError: out of ideas"),
        (lambda ids: ids, "failed with TypeError"),
        (lambda ids, scores: None, r"must return scores of shape \[1, 4\]"),
        (lambda ids, scores: scores[0], r"must return scores of shape \[1, 4\]"),
        (lambda ids, scores: scores * float("nan"), "not finite"),
        (lambda ids, scores: scores + float("inf"), "not finite"),
        (lambda ids, scores: scores * 0 + NEVER, "logits_processors: every token at position 3 is forbidden"),
    ],
)
def test_a_processor_that_breaks_is_named(processor, message):
    with pytest.raises(RequestFailedError, match=message):
        through(processor)


class Memory:
    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.shape[1])
        return scores


def test_each_state_has_copies_of_its_own():
    given_one = Memory()
    state = PathState.of((), None, (given_one,))
    fork = state.fork()
    fork.processed(torch.zeros(4), [1, 2])
    assert fork.processors[0].calls == [2] and state.processors[0].calls == given_one.calls == []


def test_nothing_to_carry_is_no_state():
    assert PathState.of((), None, ()) is None
    assert not SamplingParams().carries_state and SamplingParams(bad_words=["a"]).carries_state


class Locked(Memory):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class LocksLater(Memory):
    """Can be copied until it is called."""

    def __call__(self, input_ids, scores):
        self.lock = threading.Lock()
        return scores


def test_what_cannot_be_copied_is_refused_by_name(llm_of):
    bad, good = llm_of("fp32", "plain").generate(["to be"] * 2, [SamplingParams(logits_processors=(Locked(),)), SamplingParams(max_tokens=3)])
    assert isinstance(bad.error, InvalidInputError) and "logits_processors='Locked'" in str(bad.error) and good.error is None


def test_what_cannot_be_copied_any_more_is_left_out_of_drafts(llm_of):
    params = SamplingParams(temperature=0.0, max_tokens=12, logits_processors=(LocksLater(),))
    plain, fast = (llm_of("fp32", name).generate("to be", replace(params, num_draft_tokens=3))[0] for name in ("plain", "draft_model"))
    assert fast.token_ids == plain.token_ids and fast.stats.num_accepted_tokens > 0


# -- a request that breaks on its way --------------------------------------------------------------------------------


class BreaksAt:
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.length:
            raise ValueError("out of ideas")
        return scores


@pytest.mark.parametrize("length", [0, 1, 4, 8])
def test_the_tokens_before_a_failure_come_first(with_drafters, length):
    """A stream shows them, as plain decoding would; and neighbours go on."""
    prompt = list(b"to be")
    bare = SamplingParams(temperature=1.0, seed=6, max_tokens=20, ignore_eos=True, num_draft_tokens=length)
    [expected] = with_drafters().generate([prompt], bare)
    llm = with_drafters(hostile.Oracle.of([expected]))
    broken = replace(bare, logits_processors=(BreaksAt(len(prompt) + 7),))
    seen = []
    with pytest.raises(RequestFailedError, match="out of ideas"):
        for token in llm.stream(prompt, broken):
            seen.append(token.token_id)
    assert seen == expected.token_ids[:7]
    good, bad = llm.generate([prompt, prompt], [bare, broken])
    assert good.token_ids == expected.token_ids and "out of ideas" in str(bad.error)
    assert not llm.engine.has_unfinished_requests


@pytest.mark.parametrize("length", [0, 1, 4, 8])
def test_a_failure_behind_the_end_never_happened(with_drafters, length):
    """The walk looks past a stop string that the text ends with; plain decoding would not have come there."""
    prompt = list(b"to be")
    bare = SamplingParams(temperature=1.0, seed=6, max_tokens=20, ignore_eos=True, num_draft_tokens=length)
    [expected] = with_drafters().generate([prompt], bare)
    llm = with_drafters(hostile.Oracle.of([expected]))
    broken = replace(bare, logits_processors=(BreaksAt(len(prompt) + 7),), stop_token_ids=[expected.token_ids[6]])
    [result] = llm.generate([prompt], broken)
    assert (result.token_ids, result.finish_reason) == (expected.token_ids[:7], "stop")
