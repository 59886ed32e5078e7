import pytest
import torch
from tiny_models import make_model

from forerun import InvalidInputError, RequestFailedError, verify_candidate_sequence

PROMPT = [5, 9, 33, 7, 60, 12]
LENGTH = 10


@pytest.fixture(scope="module")
def model():
    return make_model("llama", "fp32")


@pytest.fixture(scope="module")
def continuation(model):
    """What plain `generate` writes after PROMPT."""
    written = model.generate(torch.tensor([PROMPT]), max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
    return written[0, len(PROMPT) :].tolist()


def wrong_at(tokens, place):
    return [*tokens[:place], (tokens[place] + 1) % 200, *tokens[place + 1 :]]


def test_the_targets_own_tokens_are_all_accepted(model, continuation):
    found = verify_candidate_sequence(model, torch.tensor([PROMPT]), [continuation[:6]])
    assert found.num_accepted.tolist() == [6]
    assert found.next_token_ids.tolist() == [continuation[6]]
    assert found.predicted_token_ids.tolist() == [continuation[:6]]


@pytest.mark.parametrize("place", range(5))
def test_a_wrong_candidate_ends_the_acceptance_and_is_replaced(model, continuation, place):
    found = verify_candidate_sequence(model, torch.tensor([PROMPT]), [wrong_at(continuation[:5], place)])
    assert found.num_accepted.tolist() == [place]
    assert found.next_token_ids.tolist() == [continuation[place]]
    assert found.predicted_token_ids[0, : place + 1].tolist() == continuation[: place + 1]


def test_a_candidate_is_judged_by_the_logits_one_position_before_it():
    """Logits that name their own position: an off-by-one shows at once."""

    def logits_of(tokens, attention_mask):
        return torch.nn.functional.one_hot(torch.arange(tokens.shape[1]), 50).float().expand(tokens.shape[0], -1, -1)

    found = verify_candidate_sequence(logits_of, torch.tensor([[40, 41, 42]]), [[2, 3, 9, 5]])
    assert found.predicted_token_ids.tolist() == [[2, 3, 4, 5]]
    assert found.num_accepted.tolist() == [2]
    assert found.next_token_ids.tolist() == [4]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths_equal_rows_alone(model, continuation, side):
    inputs = [PROMPT, PROMPT + continuation[:3], PROMPT[:2]]
    candidates = [continuation[:4], [], wrong_at(continuation[:2], 1)]
    longest = max(map(len, inputs))
    padding = [[0] * (longest - len(row)) for row in inputs]
    rows = [pad + row if side == "left" else row + pad for row, pad in zip(inputs, padding, strict=True)]
    mask = [[0] * len(pad) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(pad) for row, pad in zip(inputs, padding, strict=True)]
    together = verify_candidate_sequence(model, torch.tensor(rows), candidates, attention_mask=torch.tensor(mask))
    for index, (row, guesses) in enumerate(zip(inputs, candidates, strict=True)):
        alone = verify_candidate_sequence(model, torch.tensor([row]), [guesses])
        assert together.num_accepted[index] == alone.num_accepted[0]
        assert together.next_token_ids[index] == alone.next_token_ids[0]
        assert together.predicted_token_ids[index].tolist() == alone.predicted_token_ids[0].tolist() + [-1] * (4 - len(guesses))


def test_a_tensor_of_candidates_is_padded_with_minus_one(model, continuation):
    candidates = torch.tensor([continuation[:3], [continuation[0], -1, -1]])
    found = verify_candidate_sequence(model, torch.tensor([PROMPT, PROMPT]), candidates)
    assert found.num_accepted.tolist() == [3, 1]
    assert found.predicted_token_ids[1].tolist() == [continuation[0], -1, -1]


def test_no_candidates_give_the_next_token(model, continuation):
    found = verify_candidate_sequence(model, torch.tensor([PROMPT]), [[]])
    assert (found.num_accepted.item(), found.next_token_ids.item()) == (0, continuation[0])
    assert found.predicted_token_ids.shape == (1, 0)


def test_a_seed_writes_the_same_text_in_any_split(model):
    """Token by token, and by verifying the whole of it at once."""
    tokens: list[int] = []
    for _ in range(LENGTH):
        step = verify_candidate_sequence(model, torch.tensor([PROMPT + tokens]), [[]], temperature=1.0, seed=3)
        tokens.append(step.next_token_ids.item())
    at_once = verify_candidate_sequence(model, torch.tensor([PROMPT]), [tokens], temperature=1.0, seed=3)
    assert at_once.num_accepted.item() == LENGTH
    other = verify_candidate_sequence(model, torch.tensor([PROMPT]), [tokens], temperature=1.0, seed=4)
    assert other.predicted_token_ids.tolist() != [tokens]


def test_a_drawn_seed_is_reported(model):
    first = verify_candidate_sequence(model, torch.tensor([PROMPT]), [[1, 2]], temperature=1.0)
    again = verify_candidate_sequence(model, torch.tensor([PROMPT]), [[1, 2]], temperature=1.0, seed=first.seed)
    assert first.predicted_token_ids.tolist() == again.predicted_token_ids.tolist()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"input_ids": torch.tensor([1, 2])}, "input_ids"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "input_ids"),
        ({"candidate_ids": [[1], [2]]}, "candidate_ids"),
        ({"candidate_ids": [[-7]]}, "candidate_ids"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ({"attention_mask": torch.zeros(1, len(PROMPT))}, "attention_mask"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_does_not_fit_is_named(model, arguments, named):
    given = {"input_ids": torch.tensor([PROMPT]), "candidate_ids": [[1]]} | arguments
    with pytest.raises(InvalidInputError, match=named):
        verify_candidate_sequence(model, given.pop("input_ids"), given.pop("candidate_ids"), **given)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(InvalidInputError, match="logits"):
        verify_candidate_sequence(lambda tokens, attention_mask: torch.zeros(1, 1, 5), torch.tensor([[1, 2]]), [[1]])


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(RequestFailedError, match="row 0"):
        verify_candidate_sequence(lambda tokens, attention_mask: torch.full((*tokens.shape, 5), float("nan")), torch.tensor([[1, 2]]), [[1]])
