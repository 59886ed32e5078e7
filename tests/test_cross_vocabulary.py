"""Drafters with another tokenizer: what the two share, how text crosses over, and what is accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_drafters import FakeRequest, context
from tiny_models import CONTEXT, EOS, VOCAB_SIZE, across, in_other_ids, make_drafter, make_model, make_tokenizer, shuffled_ids
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forerun import LLM, InvalidInputError, ModelLoadError, SamplingParams, SavedRequest
from forerun.drafters import DraftBudget, create
from forerun.drafters.cross_vocabulary import CrossVocabulary
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.translated_text import WINDOW_BYTES, TranslatedText
from forerun.drafters.vocabularies import Vocabulary, VocabularyPair
from forerun.models.pass_cost import PassCost


@pytest.fixture(autouse=True)
def without_a_clock(monkeypatch):
    """What passes cost is no matter here."""
    monkeypatch.setattr(PassCost, "measure", lambda *_: PassCost.unknown())


ORDER = shuffled_ids()
SIZES = {"letters": 0, "some": 20, "more": VOCAB_SIZE - 258}  # pairs of letters that are tokens
token_lists = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), max_size=12)


def pair(ours: str = "more", theirs: str = "more", order: list[int] | None = None) -> VocabularyPair:
    target = Vocabulary.of(make_tokenizer(SIZES[ours]), VOCAB_SIZE, (EOS,))
    return VocabularyPair(target, Vocabulary.of(make_tokenizer(SIZES[theirs], order), VOCAB_SIZE))


PAIRS = {(ours, theirs): pair(ours, theirs) for ours in SIZES for theirs in SIZES if ours != theirs}


# -- vocabularies ----------------------------------------------------------------------------------------------------


def test_the_same_tokenizer_under_other_ids_is_shared_whole():
    found = pair(order=ORDER)
    assert found.to_draft == ORDER and found.agreement == 1.0
    assert dict(zip(found.shared_target_ids.tolist(), found.shared_draft_ids.tolist(), strict=True)) == dict(enumerate(ORDER))


def test_ends_and_beginnings_are_shared_by_role():
    other = make_tokenizer(order=ORDER)
    other.eos_token, other.bos_token = "<eos>", "a"
    renamed = make_tokenizer()
    renamed.add_special_tokens({"eos_token": "<|end|>"})
    found = VocabularyPair(Vocabulary.of(renamed, VOCAB_SIZE + 1), Vocabulary.of(other, VOCAB_SIZE))
    assert found.to_draft[VOCAB_SIZE] == ORDER[EOS] == found.to_draft[EOS]


def test_a_model_with_fewer_tokens_than_its_tokenizer():
    found = VocabularyPair(Vocabulary.of(make_tokenizer(), VOCAB_SIZE), Vocabulary.of(make_tokenizer(), 300))
    assert found.to_draft[299] == 299 and found.to_draft[300] == -1 and max(found.to_target) < 300


def test_agreement_falls_with_the_tokens_that_are_cut_otherwise():
    assert 0 < PAIRS["more", "letters"].agreement < PAIRS["more", "some"].agreement < 1


def of_bytes(vocabulary, token_ids):
    return b"".join(vocabulary.token_bytes[token_id] for token_id in token_ids)


@pytest.mark.parametrize("names", PAIRS)
@given(pieces=token_lists)
def test_text_crosses_over_whole(names, pieces):
    """Whatever the pieces: the bytes are the same, and what is said to have stayed did stay."""
    found = PAIRS[names]
    text, known = TranslatedText(found, one_to_one=False), []
    for piece in pieces:
        before = list(text.token_ids)
        known += [token_id for token_id in piece if token_id < len(found.target.token_bytes) and (found.target.token_bytes[token_id] or token_id == EOS)]
        num_same = text.read(known)
        assert text.token_ids[:num_same] == before[:num_same]
        assert of_bytes(found.draft, text.token_ids) == of_bytes(found.target, known)
    assert text.token_ids.count(EOS) == known.count(EOS)


def test_a_long_text_costs_no_more_at_its_end():
    """What lies behind the window is cut once; the rest as the tokenizer cuts the whole."""
    found = PAIRS["letters", "more"]
    text = TranslatedText(found, one_to_one=False)
    known = list(b"the rain in spain is a tale of an inn on the train. " * 40)
    for end in range(1, len(known) + 1):
        num_before = len(text.token_ids)
        assert text.read(known[:end]) >= num_before - 2
        assert len(text._window) <= 2 * WINDOW_BYTES
    assert text.token_ids == found.draft.encode(bytes(known))


def test_one_to_one_keeps_the_targets_own_cut():
    text = TranslatedText(pair(order=ORDER), one_to_one=True)
    known = [101, 101, 258, 256, EOS]  # e e ee <bos> <eos>
    assert text.read(known[:1]) == 0 and text.read(known) == 1
    assert text.token_ids == [ORDER[token_id] for token_id in known]


# -- drafts ----------------------------------------------------------------------------------------------------------


def crossed(method="auto", **of):
    return across(make_drafter("fp32"), method)(context(make_tokenizer()))


def budget(*depths):
    return [DraftBudget(depth) for depth in depths]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_p=0.95), SamplingParams(acceptance="block")], ids=["greedy", "sampled", "block"])
@torch.inference_mode()
def test_the_same_model_under_other_ids_drafts_the_same(params):
    request = FakeRequest(list(range(30, 70)), params=replace(params, max_tokens=40, logit_bias={65: 2.0}, repetition_penalty=1.2))
    (ours,) = crossed("vocabulary").propose([request], budget(6))
    (expected,) = DraftModel(make_drafter("fp32"), context()).propose([request], budget(6))
    assert ours.token_ids == expected.token_ids
    assert len(ours.scores) == 6 and all(0 < score <= 1 for score in ours.scores)
    if params.acceptance == "block":
        torch.testing.assert_close(torch.stack(ours.laws), torch.stack(expected.laws), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("least", [0.0, 0.05])
def test_trees_are_those_of_the_same_model(temperature, least):
    requests = [FakeRequest(list(range(30, 70)), [9] * i, SamplingParams(temperature=temperature, max_tokens=40), request_id=i) for i in range(3)]
    wide = [DraftBudget(4, 3, least), DraftBudget(3, 1, least), DraftBudget(2, 4, least)]
    ours, expected = (made.propose(requests, wide) for made in (crossed("vocabulary"), DraftModel(make_drafter("fp32"), context())))
    assert [(tree.token_ids, tree.parents) for tree in ours] == [(tree.token_ids, tree.parents) for tree in expected]
    assert least > 0 or [len(tree) for tree in ours] == [12, 3, 8]


@pytest.mark.parametrize("method", ["vocabulary", "text"])
def test_drafting_for_many_is_drafting_for_each(method):
    requests = [FakeRequest(list(range(10 + 7 * i, 20 + 9 * i)), request_id=i) for i in range(4)]
    together = crossed(method).propose(requests, budget(3, 0, 5, 1))
    alone = [crossed(method).propose([request], budget(most))[0] for request, most in zip(requests, (3, 0, 5, 1), strict=True)]
    assert [tree.token_ids for tree in together] == [tree.token_ids for tree in alone]
    assert all(tree.depth <= most for tree, most in zip(together, (3, 0, 5, 1), strict=True))


@pytest.mark.parametrize("method", ["vocabulary", "text"])
def test_after_rejections_the_draft_is_that_of_a_fresh_start(method):
    drafter, request = crossed(method), FakeRequest(list(range(40)))
    for step in range(8):
        (tree,) = drafter.propose([request], budget(5 * (step != 4)))
        kept = list(tree.token_ids[: step % 6])
        request.output_token_ids += [*kept, (7 * step) % 256]
    request.output_token_ids += [(7 * i) % 256 for i in range(150)]  # more than a page behind
    after, fresh = (made.propose([request], budget(5))[0] for made in (drafter, crossed(method)))
    assert after.token_ids == fresh.token_ids and after.scores == pytest.approx(fresh.scores, rel=1e-3)


def test_a_text_longer_than_the_drafters_context_has_no_draft():
    short = make_drafter("fp32")
    short.config.max_position_embeddings = 50
    drafter = across(short)(context(make_tokenizer()))
    request = FakeRequest(list(range(40)))
    assert len(drafter.propose([request], budget(9))[0]) == 7
    request.output_token_ids += list(range(20))
    assert drafter.propose([request], budget(4))[0].token_ids == ()
    drafter.free([0, 99])
    assert not drafter._known and len(drafter._cache) == 0


def writer(tokenizer, text: str) -> LlamaForCausalLM:
    """Writes `text` again and again, token by token as `tokenizer` cuts it: each token occurs once in it, and names its successor."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(set(ids)) == len(ids)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=VOCAB_SIZE, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=CONTEXT, bos_token_id=256, eos_token_id=EOS,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCAB_SIZE))
        model.lm_head.weight.normal_(std=0.001, generator=torch.Generator().manual_seed(0))
        model.lm_head.weight[[*ids[1:], ids[0]], ids] = 1.0
    return model


@pytest.mark.parametrize("names", [("more", "letters"), ("letters", "more"), ("some", "more")], ids=lambda names: "-".join(names))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_cut_otherwise_is_accepted_by_text(names, temperature):
    """The same text, written in other tokens."""
    ours, theirs = (make_tokenizer(SIZES[name]) for name in names)
    target, drafter = (writer(tokenizer, "orients a!") for tokenizer in (ours, theirs))
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40, num_draft_tokens=4, ignore_eos=True)
    llm = LLM(target, lambda made_for: CrossVocabulary(drafter, theirs, made_for), tokenizer=ours)
    result = llm.generate("orients a!orients", params)[0]
    assert result.text.startswith(" a!orients a!orients")
    # where the text ends within a token of the drafter's, it has never seen such a beginning: with longer tokens that happens
    assert result.stats.acceptance_rate > (0.9 if SIZES[names[0]] > SIZES[names[1]] else 0.6)
    assert llm.engine.speculator.drafters[0].begins_by_text


def test_a_token_that_the_target_lacks_is_told_by_text():
    """The draft begins with shared tokens and goes on by text where the drafter's favourite is none of the target's."""
    ours, theirs = make_tokenizer(SIZES["more"] - 1), make_tokenizer(SIZES["more"])
    drafter = CrossVocabulary(writer(theirs, "xyz rn!"), theirs, context(ours))
    assert 0.95 < drafter.vocabularies.agreement < 1 and not drafter.begins_by_text
    (tree,) = drafter.propose([FakeRequest(list(b"xy"))], budget(5))
    assert list(tree.token_ids) == list(b"z rn!")
    only_shared = CrossVocabulary(writer(theirs, "xyz rn!"), theirs, context(ours), method="vocabulary")
    assert only_shared.propose([FakeRequest(list(b"xy"))], budget(5))[0].token_ids[:2] == tuple(b"z ")


def test_an_end_that_the_drafter_writes_is_the_targets_end():
    model = writer(make_tokenizer(order=ORDER), "abc<eos>")
    drafter = CrossVocabulary(model, make_tokenizer(order=ORDER), context(make_tokenizer()), method="text")
    assert list(drafter.propose([FakeRequest(list(b"a"))], budget(6))[0].token_ids) == [*b"bc", EOS]


# -- in the engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_target_itself_under_other_ids_is_accepted(tmp_path, tokenizer, temperature):
    """Two folders, as users have them."""
    folders = tmp_path / "target", tmp_path / "drafter"
    for folder, model, own in zip(folders, (make_model("llama", "fp32"), in_other_ids(make_model("llama", "fp32"), ORDER)), (tokenizer, make_tokenizer(order=ORDER)), strict=True):
        model.save_pretrained(folder)
        own.save_pretrained(folder)
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=41, num_draft_tokens=4, ignore_eos=True)
    prompts = ["once there was a tale", "in the rain"]
    results = LLM(*folders).generate(prompts, params)
    assert [result.token_ids for result in results] == [result.token_ids for result in LLM(folders[0], None).generate(prompts, params)]
    assert all(result.stats.acceptance_rate > 0.95 for result in results)


@pytest.mark.parametrize("method", ["vocabulary", "text"])
def test_siblings_resumed_and_aborted_requests_leave_nothing_behind(llm_of, method):
    llm, plain = llm_of("fp32", f"cross_{'vocabulary' if method == 'vocabulary' else 'text'}"), llm_of("fp32", "plain")
    prompt = "there is a tin on the train " * 6
    params = SamplingParams(temperature=1.0, seed=9, max_tokens=20, n=4, ignore_eos=True, num_draft_tokens=3)
    several, expected = llm.generate(prompt, params)[0], plain.generate(prompt, params)[0]
    assert [each.token_ids for each in several.outputs] == [each.token_ids for each in expected.outputs]
    first = plain.generate(prompt, replace(params, n=1))[0]
    saved = replace(SavedRequest.of(first, replace(params, n=1)), output_token_ids=first.token_ids[:7])
    assert llm.resume(saved)[0].token_ids == first.token_ids
    stream = llm.stream(prompt, replace(params, n=1))
    next(stream)
    stream.close()
    (drafter,) = llm.engine.speculator.drafters
    assert not drafter._known and len(drafter._cache) == 0


@pytest.mark.parametrize("length", [4, "auto"])
def test_beside_other_drafters(llm_of, tokenizer, length):
    """Their guesses meet in one tree, and two of them share nothing but the target."""
    several = ["prompt_lookup", "self:0", across(make_drafter("fp32"), "text"), across(make_drafter("fp32"))]
    llm = LLM(make_model("llama", "fp32"), several, tokenizer=tokenizer, max_num_seqs=3, num_draft_tokens=length)
    prompts = ["there is a tin on the train " * repeats for repeats in range(1, 6)]
    params = [SamplingParams(temperature=index % 2, seed=index, max_tokens=12 + 3 * index, ignore_eos=True) for index in range(5)]
    expected = llm_of("fp32", "plain").generate(prompts, params)
    assert [result.token_ids for result in llm.generate(prompts, params)] == [result.token_ids for result in expected]


def test_tiny_stories_across_vocabularies(tiny_stories, tmp_path):
    """A trained pair: the drafter's folder under other ids is accepted like the folder itself."""
    target, drafter = tiny_stories
    params = [SamplingParams(temperature=0.0, max_tokens=30, num_draft_tokens=4), SamplingParams(temperature=1.0, seed=5, max_tokens=30, num_draft_tokens=4)]
    prompts = ["Once upon a time, there was a little dog named", "One day, Lily went to the"]
    same = LLM(target, drafter, dtype="bf16").generate(prompts, params)
    for method in ("vocabulary", "text"):
        told = LLM(target, lambda made_for, method=method: CrossVocabulary.load(str(drafter), made_for, method=method), dtype="bf16").generate(prompts, params)
        assert [result.token_ids for result in told] == [result.token_ids for result in same]
        for ours, theirs in zip(told, same, strict=True):
            assert ours.stats.acceptance_length > 0.8 * theirs.stats.acceptance_length > 1.0


# -- who is let in ---------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused():
    with pytest.raises(InvalidInputError, match="method='words': give one of auto, vocabulary, text"):
        crossed("words")


def test_a_tokenizer_on_one_side_only(tmp_path, tokenizer):
    small = make_drafter("fp32")
    small.resize_token_embeddings(VOCAB_SIZE - 60)
    small.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="has 260 tokens, the target 320, and the drafter has no tokenizer.*copy the drafter's tokenizer.json"):
        create(str(tmp_path), context(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="the target has no tokenizer to tell which they share: give LLM.tokenizer"):
        create(str(tmp_path), context())
    with pytest.raises(ModelLoadError, match="the target none"):
        CrossVocabulary.load(str(tmp_path), context())
    with pytest.raises(ModelLoadError, match="has no tokenizer, so that nobody knows"):
        CrossVocabulary.load(make_drafter("fp32"), context(tokenizer))


def test_no_token_in_common():
    def only(letters):
        tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

    with pytest.raises(ModelLoadError, match="shares no token with the target"):
        CrossVocabulary(make_drafter("fp32"), only("abc"), replace(context(only("xyz")), end_token_ids=()))


def test_a_loaded_model_of_a_folder_brings_its_tokenizer_and_stays_as_it_is(tmp_path, tokenizer):
    in_other_ids(make_drafter("fp32"), ORDER).save_pretrained(tmp_path)
    make_tokenizer(order=ORDER).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    attention = model.config._attn_implementation
    made = create(model, context(tokenizer))
    assert isinstance(made, CrossVocabulary) and made.name == "cross_vocabulary"
    assert model.config._attn_implementation == attention and type(model.lm_head) is torch.nn.Linear
