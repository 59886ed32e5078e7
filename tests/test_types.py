from __future__ import annotations

import pytest

from forerun import CompletionOutput, InvalidInputError, RequestFailedError, RequestOutput, SpeculationStats, TokenTree, Verified

#      4      5
#     / \     |
#    6   7    6
BRANCHED = TokenTree((4, 5, 6, 7, 6), (-1, -1, 0, 0, 1), (0.5, 0.4, 0.3, 0.2, 0.1))


def test_chain():
    chain = TokenTree.chain([7, 8, 9])
    assert chain == TokenTree((7, 8, 9), (-1, 0, 1))
    assert chain.is_chain and not BRANCHED.is_chain


def test_an_empty_tree_is_a_chain_of_nothing():
    assert len(TokenTree()) == 0 and not TokenTree() and TokenTree().is_chain


@pytest.mark.parametrize(("node", "token_id", "child"), [(-1, 4, 0), (-1, 5, 1), (0, 6, 2), (0, 7, 3), (1, 6, 4), (-1, 6, None), (2, 6, None)])
def test_child(node, token_id, child):
    assert BRANCHED.child(node, token_id) == child


@pytest.mark.parametrize(("node", "path"), [(-1, []), (0, [4]), (3, [4, 7]), (4, [5, 6])])
def test_path_to(node, path):
    assert BRANCHED.path_to(node) == path


def test_first_cuts_nodes_parents_and_scores():
    assert BRANCHED.first(3) == TokenTree((4, 5, 6), (-1, -1, 0), (0.5, 0.4, 0.3))
    assert BRANCHED.first(9) is BRANCHED
    assert BRANCHED.first(0) == TokenTree()


@pytest.mark.parametrize(
    ("refused", "left"),
    [((), (0, 1, 2, 3, 4)), ((0,), (1, 4)), ((1,), (0, 2, 3)), ((2, 4), (0, 1, 3)), ((0, 1), ()), ((4,), (0, 1, 2, 3))],
)
def test_where_takes_what_hangs_on_a_refused_node_with_it(refused, left):
    asked = []
    kept = BRANCHED.where(lambda node: asked.append(node) or node not in refused)
    assert kept == BRANCHED._take(left)
    assert kept is BRANCHED or refused
    assert all(BRANCHED.parents[node] not in refused for node in asked)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        (((1, 2), (-1,)), "TokenTree.parents"),
        (((1, 2), (-1, 1)), "TokenTree.parents"),
        (((1, 2), (-2, 0)), "TokenTree.parents"),
        (((1, 2), (-1, 0), (0.5,)), "TokenTree.scores"),
    ],
)
def test_a_tree_that_is_none_is_refused(parts, field):
    with pytest.raises(InvalidInputError, match=field) as caught:
        TokenTree(*parts)
    assert caught.value.field == field


def test_the_targets_own_token_is_not_counted_as_accepted():
    assert Verified((0, 1), (4, 5, 6)).num_accepted_tokens == 2


def test_stats_rates():
    stats = SpeculationStats(num_target_passes=4, num_draft_tokens=10, num_accepted_tokens=6, num_output_tokens=10)
    assert stats.acceptance_length == 2.5
    assert stats.acceptance_rate == 0.6


def test_stats_of_nothing_divide_by_nothing():
    assert SpeculationStats().acceptance_length == SpeculationStats().acceptance_rate == 0.0


def test_count_accepted_by_position():
    stats = SpeculationStats()
    for accepted in (2, 0, 3, 1):
        stats.count_accepted(accepted)
    assert stats.accepted_per_position == [3, 2, 1]
    assert stats.num_accepted_tokens == 6


def test_adding_stats():
    one = SpeculationStats(1, 2, 3, 4, 0.5, 0.25, 0.125, [3, 2])
    one.add(SpeculationStats(10, 20, 30, 40, 5.0, 2.5, 1.25, [1, 1, 1]))
    assert one == SpeculationStats(11, 22, 33, 44, 5.5, 2.75, 1.375, [4, 3, 1])


def test_as_dict_holds_every_figure():
    figures = SpeculationStats(2, 4, 3, 5, 0.5, 0.25, 0.125, [2, 1]).as_dict()
    assert figures["acceptance_length"] == 2.5 and figures["acceptance_rate"] == 0.75
    assert set(SpeculationStats.__dataclass_fields__) < set(figures)


def test_an_output_reads_like_its_first_completion():
    stats = SpeculationStats()
    output = RequestOutput("a", [1], [CompletionOutput("b", [2], "length", 7, stats), CompletionOutput("c", [3], "stop", 8, stats)])
    assert (output.text, output.token_ids, output.finish_reason, output.seed, output.logprobs) == ("b", [2], "length", 7, None)
    assert output.stats is stats


@pytest.mark.parametrize("name", ["outputs", "text", "token_ids", "seed", "stats", "logprobs"])
def test_reading_a_failed_output_raises_its_error(name):
    output = RequestOutput("a", [1], error=RequestFailedError("broke"))
    assert output.finish_reason == "error"
    with pytest.raises(RequestFailedError, match="broke"):
        getattr(output, name)


def test_long_values_are_shortened_in_errors():
    error = InvalidInputError("prompt", list(range(1000)), "shorten it")
    assert str(error).startswith("prompt=[0, 1, 2") and str(error).endswith("...: shorten it") and len(str(error)) < 120


def test_invalid_input_is_a_value_error():
    assert issubclass(InvalidInputError, ValueError)
