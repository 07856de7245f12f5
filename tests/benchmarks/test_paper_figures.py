"""benchmarks/paper: the replays, what of them is compared, and how it is drawn."""

import json
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from dali.errors import UsageError
from replay.tiny_traces import random_trace, trace_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paper():
    added = [str(ROOT / "benchmarks" / "paper"), str(ROOT / "benchmarks" / "tools")]
    sys.path[:0] = added
    try:
        names = ("figures", "replays", "beside", "drawing", "memory", "planning")
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    finally:
        for path in added:
            sys.path.remove(path)


@pytest.fixture(scope="module")
def replays(paper):
    trace = random_trace(sequences=32, prompt=3, answer=58, layers=3, experts=16, top_k=4)
    ahead = np.roll(trace.ids, -1, axis=1)  # what a perfect predictor would say
    known = {(kind, 1): ahead for kind in ("next_gate", "residual", "ridge")}
    predicted = random_trace(
        sequences=32, prompt=3, answer=58, layers=3, experts=16, top_k=4, predicted=known
    )
    return paper.replays.Replays(predicted, "mixtral-8x7b")


@pytest.fixture(scope="module")
def rows(paper, replays):
    return paper.figures.rows_of(replays, list(paper.figures.FIGURES))


def values(paper, rows, figure):
    return next(found for key, found in paper.beside.tables(rows).items() if key[0] == figure)


def test_counts_of_experts_keep_their_share_of_a_layer(replays):
    assert [replays.scaled(count) for count in (1, 2, 0.1)] == [2, 4, 1]  # of 8, under 16


def test_batches_are_those_with_enough_sequences(replays):
    assert replays.batches((4, 32, 33)) == [4, 32]


def test_a_trace_needs_one_of_the_papers_models(paper):
    with pytest.raises(UsageError, match="does not say whose sizes"):
        paper.replays.load("some.npz")


def test_whole_layers_are_as_many_as_all_slots_hold(paper):
    policies = paper.replays.whole_layers(layers=5, experts=8, slots=3)  # 15 slots: one layer of 8
    assert [len(policies.cache.initial(layer)) for layer in range(5)] == [0, 0, 0, 0, 8]
    assert policies.assign.cpu_layers == 4


def test_the_busiest_tie_to_the_lower_id(paper):
    ids = np.array([[[0, 1]], [[1, 3]], [[3, 2]]])  # [3 tokens, 1 layer, k = 2]
    workload = paper.replays.counts(ids, 4)
    assert workload.tolist() == [[1, 2, 1, 2]]
    assert paper.replays.busiest(workload, 3).tolist() == [[1, 3, 0]]


def test_a_prefill_step_holds_the_first_tokens_of_each_sequence(paper):
    trace = trace_of([[0]] * 150, 4, sequences=[100, 30, 20])
    (step,) = paper.replays.prompts(trace, 2)
    assert step.prefill
    assert step.rows.tolist() == [*range(64), *range(100, 130)]
    assert step.sequences.tolist() == [0] * 64 + [1] * 30


def test_sequences_side_by_side_are_those_that_last(paper):
    trace = trace_of([[0]] * 200, 4, sequences=[56, 20, 60, 64])
    (steps,) = paper.replays.side_by_side(trace, 3)
    assert len(steps) == 56
    assert steps[1].rows.tolist() == [1, 77, 137]


def test_shares_of_the_optimum(paper, replays):
    steps = replays.steps(4)[4:40]
    made = paper.figures.create
    policies = {name: made("assign", name) for name in ("cpu", "greedy", "two_lane")}
    found = paper.replays.shares(replays, [step for step in steps if not step.prefill], policies, every=3)
    assert found["cpu"].found < found["greedy"].found <= found["two_lane"].found <= 1
    assert all(share.least <= share.found for share in found.values())


def test_the_replayed_figures_hold_together(paper, rows):
    decoding = values(paper, rows, "12")
    assert list(decoding) == ["batch 4", "batch 8", "batch 16", "batch 32"]
    for group in decoding.values():
        assert all(0 < group[name] <= group["bound"] for name in paper.figures.SYSTEMS if name != "llama.cpp")
    for name, group in paper.beside.part(values(paper, rows, "14"), "b").items():
        assert 0 < group["greedy, bound"] <= group["greedy"] <= 1, name
    found = values(paper, rows, "16")
    assert found["b, top 2"]["residual"] == 1.0  # the predictions are perfect
    assert found["a"]["residual"] > found["a"]["random"]
    for group in paper.beside.part(values(paper, rows, "17"), "b").values():
        assert group["workload"] <= group["optimum"]
    sizes = values(paper, rows, "18")
    assert [float(count) for count in sizes["b"]] == [2, 4, 6, 8, 10, 12, 14]
    assert all(smaller < larger for smaller, larger in pairwise(sizes["b"].values()))
    assert len(paper.beside.part(sizes, "d")) == 7
    steps = values(paper, rows, "19")["batch 8"]
    assert list(steps) == ["naive", "greedy", "prefetch", "resident", "cache"]
    assert steps["naive"] < steps["greedy"] < steps["cache"]


def test_without_predictions_nobody_prefetches(paper):
    bare = paper.replays.Replays(
        random_trace(sequences=32, prompt=0, answer=58, layers=2), "deepseek-v2-lite"
    )
    rows = paper.figures.rows_of(bare, ["16", "18"])
    assert {row["figure"] for row in rows} == {"18"}
    assert "a" not in values(paper, rows, "18")


def test_the_summary_stands_beside_the_paper(paper, rows):
    lines = {(row["figure"], row["what"]): row for row in paper.beside.summary(rows)}
    decoding = values(paper, rows, "12")
    mean = np.mean([group["dali-paper"] / group["hybrimoe"] for group in decoding.values()])
    line = lines["12", "dali-paper over hybrimoe"]
    assert line["tiny as mixtral-8x7b"] == round(float(mean), 3)
    assert line["paper"] == "1.32"


def test_a_mean_ratio_is_over_groups_with_both(paper):
    groups = {"a": {"x": 2.0, "y": 1.0}, "b": {"x": 1.0, "y": 1.0}, "c": {"x": 9.0}}
    assert paper.beside.over(groups, "x", "y") == 1.5


def test_drawings_are_well_formed_and_name_every_series(paper, rows):
    sheets = paper.drawing.sheets(rows)
    assert sorted(sheets) == [f"paper_{figure}.svg" for figure in paper.figures.FIGURES]
    for text in sheets.values():
        ElementTree.fromstring(text)
    assert all(f">{name}<" in sheets["paper_12.svg"] for name in [*paper.figures.SYSTEMS, "bound"])


def test_the_drawings_in_the_docs_are_of_the_recorded_results(paper):
    results = json.loads((ROOT / "benchmarks" / "results" / "paper_figures.json").read_text("utf-8"))
    for name, text in paper.drawing.sheets(results["rows"]).items():
        assert (ROOT / "docs" / "figures" / name).read_text("utf-8") == text, f"run figures.py again: {name}"
    assert paper.beside.summary(results["rows"]) == results["summary"]


def test_memory_adds_up(paper):
    shape = paper.memory.SHAPES["mixtral-8x7b"]
    none = paper.memory.needed("mixtral-8x7b", 0.0, 0)
    assert none == 16 * shape.expert_bytes + 32 * shape.dense_bytes + 2 * 32_000 * 4096
    half = paper.memory.needed("mixtral-8x7b", 0.5, 0)
    assert half - none == 32 * 4 * shape.expert_bytes
    sequence = paper.memory.needed("mixtral-8x7b", 0.5, 1) - half
    assert sequence == 128 * 32 * (1024 + 1024) * 2 + 4 * 32_000


def test_planning_is_timed_for_every_policy(paper, replays):
    rows = paper.planning.figure_15(replays, 4, samples=2)
    assert [row["policy"] for row in rows] == [
        "greedy", "hybrimoe", "two_lane", "branch_and_bound", "integer_program",
    ]  # fmt: skip
    assert all(0 < row["share"] < 1 for row in rows)
    modelled = {row["policy"]: row["modelled_us"] for row in rows}
    assert modelled["integer_program"] <= modelled["branch_and_bound"] * 1.001
    assert modelled["branch_and_bound"] <= modelled["greedy"]
    shares = paper.planning.table_6(replays, 4)
    assert [row["policy"] for row in shares] == ["hybrimoe", "dali-paper", "default"]
    assert all(0 < row["share"] < 1 for row in shares)
