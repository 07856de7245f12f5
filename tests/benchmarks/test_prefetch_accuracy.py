"""The metrics of benchmarks/policies/prefetch_accuracy.py on cases worked by hand."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def accuracy():
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "policies"))
    try:
        yield import_module("prefetch_accuracy")
    finally:
        sys.path.pop()


def test_recall_is_the_share_of_true_experts_in_any_order(accuracy):
    true = torch.tensor([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    predicted = torch.tensor([[[1, 0], [3, 9]], [[9, 8], [7, 6]]])
    assert accuracy.recall(true, predicted).tolist() == [[1.0, 0.5], [0.0, 1.0]]


def test_workloads_count_the_batch_position_by_position(accuracy):
    ids = torch.tensor([[[0, 1], [2, 3]], [[1, 3], [3, 2]]])  # [batch of 2, 2 tokens, k = 2]
    assert accuracy.workloads(ids, 4).tolist() == [[1, 2, 0, 1], [0, 0, 2, 2]]


def test_the_predicted_busiest_are_the_lower_ids_of_those_that_tie(accuracy):
    workload = torch.tensor([[1, 5, 1, 1, 0], [0, 0, 0, 0, 0]])
    chosen = accuracy.predicted_busiest(workload, 3)
    assert [row.nonzero().flatten().tolist() for row in chosen] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("chosen", "count", "found"),
    [
        ((0,), 1, 1.0),
        ((0,), 2, 0.5),
        ((0, 1), 2, 0.75),  # the second place is expert 1's and expert 2's by halves
        ((0, 2), 2, 0.75),
        ((0, 1, 2), 2, 1.0),
        ((0, 1), 3, 2 / 3),  # three places for three: nothing to share
        ((3, 4), 3, 0.0),
        ((0, 1, 2, 3), 4, 1.0),
        ((3, 4), 4, 0.25),
    ],
)
def test_experts_that_tie_for_the_last_place_share_it(accuracy, chosen, count, found):
    workload = torch.tensor([4, 3, 3, 2, 1])
    mask = torch.zeros(5, dtype=torch.bool)
    mask[list(chosen)] = True
    assert accuracy.busiest_found(workload, mask, count).item() == pytest.approx(found)


def test_busiest_found_keeps_layers_and_tokens_apart(accuracy):
    workload = torch.tensor([[[2, 1], [1, 2]]])  # [1 layer, 2 tokens, 2 experts]
    chosen = torch.tensor([[[True, False], [True, False]]])
    assert accuracy.busiest_found(workload, chosen, 1).tolist() == [[1.0, 0.0]]


def test_an_interval_holds_each_layer_and_their_average(accuracy):
    found = accuracy.interval(np.array([[0.0, 1.0], [1.0, 1.0]]))
    assert found["layers"][0] == {
        "mean": 0.5,
        "low": 0.0,
        "high": 1.0,
    }  # two units: a resample is 0, 1/2 or 1
    assert found["layers"][1] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert {key: found[key] for key in ("mean", "low", "high")} == {"mean": 0.75, "low": 0.5, "high": 1.0}


def test_an_interval_narrows_with_the_number_of_sequences(accuracy):
    def width(units):
        found = accuracy.interval(np.tile([[0.0], [1.0]], (units // 2, 1)))
        return found["high"] - found["low"]

    # 1.96 standard deviations of a mean of coin tosses to either side
    assert width(400) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.2)
    assert width(100) == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.2)


def test_sequences_are_whole_batches_whose_measured_parts_do_not_overlap(accuracy, tmp_path):
    text = tmp_path / "text"
    text.write_text("x" * 64 * 21)
    llm = SimpleNamespace(encode=lambda text: list(range(len(text))))
    sequences = accuracy.cut(llm, [text], most=100)
    assert len(sequences) == 16  # 20 there are
    assert {len(tokens) for tokens in sequences} == {128}
    measured = [token for tokens in sequences for token in tokens[64:]]
    assert len(measured) == len(set(measured))
    assert len(accuracy.cut(llm, [text], most=9)) == 8
