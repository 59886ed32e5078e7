"""The store of past outputs: what it finds, forgets, keeps apart, and writes down."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from forerun import InvalidInputError
from forerun.drafters import SuffixStore
from forerun.drafters.suffix_store import CONTEXT_LENGTHS, ENOUGH_MATCHES, MAX_MATCHES

outputs = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=30), st.sampled_from([None, "a", "b"])), max_size=12)


def by_definition(texts, tail, num_tokens):
    """Every place behind the longest indexed context that occurs, then behind shorter ones; later ones first."""
    found, seen = [], set()
    for length in reversed([size for size in CONTEXT_LENGTHS if size <= len(tail)]):
        for number in range(len(texts) - 1, -1, -1):
            text = texts[number]
            for start in range(len(text) - 1, length - 1, -1):
                if text[start - length : start] == tail[-length:] and (number, start) not in seen and len(found) < MAX_MATCHES:
                    seen.add((number, start))
                    found.append((length, text[start : start + num_tokens]))
        if len(found) >= ENOUGH_MATCHES:
            break
    return found


@given(outputs, st.lists(st.integers(0, 2), max_size=20), st.integers(1, 9))
def test_what_it_finds_is_its_definition(added, tail, num_tokens):
    store = SuffixStore(1024)
    for text, salt in added:
        store.add(text, salt)
    for salt in (None, "a", "b", "never"):
        own = [text for text, owner in added if owner == salt]
        assert [tuple(match) for match in store.recall(tail, num_tokens, salt)] == by_definition(own, tail, num_tokens)


@given(outputs.filter(bool), st.integers(64, 100))
def test_it_holds_at_most_what_it_may_and_loses_the_oldest(added, max_tokens):
    store = SuffixStore(max_tokens)
    for _ in range(3):
        for text, salt in added:
            store.add(text, salt)
            assert store.num_tokens + store.num_outputs <= max_tokens
            if len(text) > 2:
                assert store.recall(text[-3:-1], 1, salt)[0].token_ids, "the newest output is there"
    long = [text for text, _ in added if len(text) > 2]
    slots = [output.start % max_tokens for output in store._outputs]
    held = [store._tokens[slot : slot + output.num_tokens].tolist() for slot, output in zip(slots, store._outputs, strict=True)]
    assert held == (long * 3)[len(long) * 3 - len(held) :]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=40))
def test_after_many_rounds_a_tenant_still_sees_its_own_texts_only(rounds):
    """Each tenant writes tokens of its own, in a store that is overwritten over and over."""
    store = SuffixStore(64)
    own = {"a": 100, "b": 200, "c": 300}
    for number, salt in rounds:
        store.add([7, 8, *(own[salt] + number + i for i in range(6)), 7, 8], salt)
        for asked, first in own.items():
            assert all(first <= token_id < first + 100 or token_id in (7, 8) for match in store.recall([7, 8], 5, asked) for token_id in match.token_ids)
    assert len(store._tenants) <= store.num_outputs


def test_a_text_longer_than_the_store_keeps_its_end():
    store = SuffixStore(64)
    store.add(list(range(500)))
    assert store.num_tokens == 63
    assert store.recall([497, 498], 4)[0].token_ids == [499]
    assert store.recall([300, 301], 4) == []


def test_a_context_does_not_reach_over_the_end_of_an_output():
    store = SuffixStore(64)
    store.add([1, 2, 3])
    store.add([4, 5, 6])
    assert store.recall([3, 4], 4) == []
    assert store.recall([1, 2], 4)[0].token_ids == [3]


def test_a_million_tokens_take_less_than_200_mb():
    store = SuffixStore(1_000_000)
    assert store.num_bytes < 200e6


@given(outputs)
def test_saved_and_loaded_it_finds_the_same(tmp_path_factory, added):
    path = tmp_path_factory.mktemp("store") / "outputs.safetensors"
    store = SuffixStore(300, prompt_tokens=5)
    for text, salt in added:
        store.add(text, salt)
    store.save(path)
    loaded = SuffixStore.load(path)
    assert (loaded.max_tokens, loaded.prompt_tokens, loaded.num_tokens, loaded.num_outputs) == (300, 5, store.num_tokens, store.num_outputs)
    for text, salt in added:
        assert loaded.recall(text[:-1], 4, salt) == store.recall(text[:-1], 4, salt)


def saved(tmp_path, salt="a secret salt"):
    store = SuffixStore(500)
    for start in (10, 20, 30):
        store.add(list(range(start, start + 40)), salt)
    store.save(tmp_path / "s")
    return tmp_path / "s"


def test_a_smaller_store_loads_the_newest(tmp_path):
    loaded = SuffixStore.load(saved(tmp_path), max_tokens=100)
    assert loaded.num_outputs == 2
    assert loaded.recall([10, 11], 1, "a secret salt") == []


def test_salts_are_not_written_down(tmp_path):
    content = saved(tmp_path).read_bytes()
    assert b"secret" not in content and b"pickle" not in content


def test_saving_replaces_the_old_file_and_leaves_no_other(tmp_path):
    saved(tmp_path)
    saved(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


def test_no_file_can_be_written_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InvalidInputError, match="path=.*cannot be written.*give a file in a folder that exists"):
        SuffixStore(64).save(tmp_path / "none" / "s")


def damaged(path, **columns):
    content = load_file(path) | columns
    header = {"format": "forerun suffix store", "version": 1, "max_tokens": 500, "prompt_tokens": 16}
    save_file({name: column for name, column in content.items() if column is not None}, path, metadata={"header": json.dumps(header)})


@pytest.mark.parametrize(
    "columns",
    [
        {"token_ids": None}, {"tenants": None}, {"owners": np.array([0, 0, 1], np.int32)}, {"owners": np.array([0, -1, 0], np.int32)},
        {"owners": np.array([0, 0], np.int32)}, {"num_tokens": np.array([40, 40, 41])}, {"num_tokens": np.array([-40, 120, 40])},
        {"num_tokens": np.array([40.0, 40.0, 40.0])}, {"token_ids": np.full(120, -1, np.int32)}, {"tenants": np.zeros((1, 3), np.uint8)},
        {"tenants": np.zeros(16, np.uint8)},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_that_does_not_add_up_is_refused(tmp_path, columns):
    path = saved(tmp_path)
    damaged(path, **columns)
    with pytest.raises(InvalidInputError, match="suffix store=.*is damaged .*: build it again"):
        SuffixStore.load(path)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (None, "another kind of file"), ("[]", "another kind of file"), ("{", "cannot be read"), ('{"format": "other"}', "another kind of file"),
        ('{"format": "forerun suffix store", "version": 2}', "has version 2, this forerun reads 1"),
        ('{"format": "forerun suffix store", "version": 1}', "its header lacks sizes"),
        ('{"format": "forerun suffix store", "version": 1, "max_tokens": 3, "prompt_tokens": 1}', "max_tokens=3"),
    ],
)  # fmt: skip
def test_another_header_is_refused(tmp_path, header, problem):
    path = saved(tmp_path)
    save_file(load_file(path), path, metadata=None if header is None else {"header": header})
    with pytest.raises(InvalidInputError, match=problem):
        SuffixStore.load(path)


def test_broken_bytes_are_refused(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    chance = random.Random(0)
    for size in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidInputError, match="suffix store"):
            SuffixStore.load(path)
    path.write_bytes(bytes(chance.randrange(256) for _ in range(300)))
    with pytest.raises(InvalidInputError, match="suffix store"):
        SuffixStore.load(path)
    with pytest.raises(InvalidInputError, match="suffix store"):
        SuffixStore.load(tmp_path / "nothing")


@pytest.mark.parametrize("sizes", [{"max_tokens": 63}, {"max_tokens": True}, {"max_tokens": 1e6}, {"prompt_tokens": -1}, {"prompt_tokens": None}], ids=str)
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(InvalidInputError, match=f"^{next(iter(sizes))}=.*give a whole number"):
        SuffixStore(**sizes)


@pytest.mark.parametrize("token_ids", [[1, 2, -1], [1, 2, 1 << 31], [1, 2, "a"], [1, 2, 1 << 80]])
def test_what_are_no_token_ids_are_refused(token_ids):
    store = SuffixStore(64)
    with pytest.raises(InvalidInputError, match="token_ids="):
        store.add(token_ids)
    assert store.num_tokens == 0


def test_a_store_that_does_not_fit_is_refused(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("forerun.drafters.suffix_store.np.zeros", full)
    with pytest.raises(InvalidInputError, match="max_tokens=1000000: is more than this machine has room for"):
        SuffixStore()
