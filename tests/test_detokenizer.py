"""Text as it comes: whole characters, and never a part of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import EOS, make_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from forerun.engine.detokenizer import Detokenizer

TOKENIZER = make_tokenizer()


def fed(text, stop=(), min_tokens=0):
    """Pieces released by each token, then the rest, and the detokenizer."""
    detokenizer = Detokenizer(TOKENIZER, [], stop, min_tokens)
    pieces = []
    for token_id in text if isinstance(text, list) else TOKENIZER(text).input_ids:
        pieces.append(detokenizer.feed(token_id))
        if detokenizer.matched_stop is not None:
            break
    return [*pieces, detokenizer.finish()], detokenizer


@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text(text):
    pieces, detokenizer = fed(text)
    assert "".join(pieces) == detokenizer.text == TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, 319), max_size=30))
def test_any_token_ids_give_the_tokenizers_text(token_ids):
    """Bytes that are no character, special tokens, halves of characters."""
    _, detokenizer = fed(token_ids)
    assert detokenizer.text == TOKENIZER.decode(token_ids, skip_special_tokens=True)


def test_a_character_of_four_bytes_comes_in_one_piece():
    pieces, _ = fed("a🙂b")
    assert pieces == ["a", "", "", "", "🙂", "b", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    pieces, _ = fed(list("🙂".encode())[:2])
    assert pieces[:2] == ["", ""] and pieces[2].startswith("�")


def test_special_tokens_have_no_text():
    assert fed([104, EOS, 105])[1].text == "hi"


def test_a_stop_string_is_held_back_and_cut():
    pieces, detokenizer = fed("abXYZcd", stop=("XYZ",))
    assert pieces == ["a", "b", "", "", "", ""]
    assert (detokenizer.text, detokenizer.matched_stop) == ("ab", "XYZ")


def test_a_false_start_is_released():
    pieces, _ = fed("aXYb", stop=("XYZ",))
    assert pieces == ["a", "", "", "XYb", ""]


def test_a_start_inside_a_false_start_is_kept():
    pieces, detokenizer = fed("XXYZ", stop=("XYZ",))
    assert pieces == ["", "X", "", "", ""]
    assert detokenizer.text == "X"


def test_what_is_held_at_the_end_is_released():
    assert fed("abXY", stop=("XYZ",))[1].text == "abXY"


def test_the_earliest_stop_wins():
    assert fed("abXcYd", stop=("Yd", "Xc"))[1].matched_stop == "Xc"


def test_a_stop_inside_a_token_cuts_the_token():
    """"th" and "he" may be one token: the text ends before the stop, whatever the tokens are."""
    pieces, detokenizer = fed("ate", stop=("t",))
    assert len(TOKENIZER("ate").input_ids) == 2
    assert detokenizer.text == "a"


def test_a_stop_of_several_bytes():
    assert fed("ok🙂no", stop=("🙂",))[1].text == "ok"


def test_stops_wait_for_min_tokens():
    _, detokenizer = fed("aXbXc", stop=("X",), min_tokens=3)
    assert (detokenizer.text, detokenizer.matched_stop) == ("aXb", "X")


@given(st.text(alphabet="bcd", max_size=20), st.lists(st.text(alphabet="bcd", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop_that_is_complete(text, stops):
    """One letter a token here; where several stops end together, the longest is cut."""
    _, detokenizer = fed(text, stop=tuple(stops))
    complete = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    _, start, stop = min(complete, default=(0, len(text), None))
    assert (detokenizer.text, detokenizer.matched_stop) == (text[:start], stop)


def test_without_a_tokenizer_there_is_no_text():
    detokenizer = Detokenizer(None, [], (), 0)
    assert detokenizer.feed(5) == detokenizer.finish() == detokenizer.text == ""


@pytest.mark.parametrize("clean_up", [True, False])
def test_the_tokenizers_own_clean_up_does_not_shift_the_end(clean_up):
    """Llama 3's tokenizer asks for it, and it would shorten " ." to "."."""
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = clean_up
    detokenizer = Detokenizer(tokenizer, [], ("!?",), 0)
    for token_id in tokenizer("a . b , c !").input_ids:
        detokenizer.feed(token_id)
    detokenizer.finish()
    assert detokenizer.text == "a . b , c !"


def test_the_first_word_keeps_its_space_behind_a_prompt():
    """A decoder of the Llama 2 kind drops the space of a text's first word."""
    pieces = Tokenizer(BPE(vocab={"▁Lily": 0, "▁ran": 1, "!": 2}, merges=[]))
    pieces.decoder = decoders.Metaspace()
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=pieces), [0], (), 0)
    assert detokenizer.feed(1) + detokenizer.feed(2) + detokenizer.finish() == " ran!"


def test_what_is_held_back_at_the_end_is_not_cut_behind_such_a_prompt():
    """The bytes left at the end are counted on the same text as those released before them."""
    pieces = Tokenizer(BPE(vocab={"▁Lily": 0, "▁ran": 1, "<0xE2>": 2}, merges=[]))
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    detokenizer = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=pieces), [0], (), 0)
    assert detokenizer.feed(1) + detokenizer.feed(2) == " ran"
    assert detokenizer.finish() == "\ufffd"
