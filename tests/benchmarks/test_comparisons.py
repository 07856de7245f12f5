"""What the comparisons with llama.cpp and the disk work out from their measurements."""

from __future__ import annotations

import multiprocessing
import operator
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "models"))


@pytest.fixture
def vs_llama_cpp(benchmarks):
    return import_module("vs_llama_cpp")


@pytest.fixture
def agreement(benchmarks):
    return import_module("agreement")


@pytest.fixture
def gguf_load(benchmarks):
    return import_module("gguf_load")


def a_round(ours: float, theirs: float, before: float, after: float) -> dict[str, dict[str, float]]:
    read = {"gb_per_token": 1.0, "gb_per_second_before": before, "gb_per_second_after": after}
    return {"dali": {"tg64": ours, **read}, "llama_cpp": {"tg64": theirs}}


def test_both_sides_alternate_who_goes_first(vs_llama_cpp):
    order = []

    def side(name):
        return lambda: order.append(name) or {"speed": len(order)}

    both = vs_llama_cpp.in_turn(3, 2, side("dali"), side("llama_cpp"))  # three are there already
    assert order == ["llama_cpp", "dali", "dali", "llama_cpp"]
    assert both == [
        {"llama_cpp": {"speed": 1}, "dali": {"speed": 2}},
        {"dali": {"speed": 3}, "llama_cpp": {"speed": 4}},
    ]


@pytest.mark.parametrize(("before", "after"), [(40, 35), (35, 40)])
def test_both_sides_share_the_roofline_of_the_larger_reading(vs_llama_cpp, before, after):
    both = vs_llama_cpp.add_roofline(a_round(20, 10, before, after))
    assert both["dali"]["roofline_percent"] == pytest.approx(
        50
    )  # 1 GB a token at 40 GB/s: 40 tokens a second
    assert both["llama_cpp"]["roofline_percent"] == pytest.approx(25)


def test_a_band_needs_both_readings_and_five_rounds(vs_llama_cpp):
    fast, slow = ([a_round(20, 10, *read) for _ in range(5)] for read in ((60, 69.9), (30, 39)))
    mixed, few = [a_round(20, 10, 39, 40)] * 5, [a_round(20, 10, 55, 55)] * 4
    assert vs_llama_cpp.bands([*fast, *mixed, *slow, *few]) == {"30-40 GB/s": slow, "60-70 GB/s": fast}


def test_rows_are_medians_of_all_and_of_each_band(vs_llama_cpp):
    pairs = [
        {side: {"pp512": speed, "load_seconds": 1.0, "peak_gb": 2.0} for side, speed in speeds.items()}
        for speeds in (
            {"dali": 10, "llama_cpp": 10},
            {"dali": 30, "llama_cpp": 10},
            {"dali": 8, "llama_cpp": 4},
        )
    ]
    slow = [a_round(ours, 20, 40, 45) for ours in (20, 22, 24, 26, 28)]
    fast = [a_round(ours, 30, 60, 65) for ours in (45, 45, 60, 60)]  # too few to be shown
    rounds = [vs_llama_cpp.add_roofline(both) for both in slow + fast]
    rows = {row["measured"]: row for row in vs_llama_cpp.rows_of({"Q4_0": pairs}, {"Q4_0": rounds})}
    assert rows["pp512"] == {
        "file": "Q4_0", "measured": "pp512", "dali": 10, "llama_cpp": 10, "ratio": 2, "target": 3, "most_possible": None,
        "samples": 3,
    }  # fmt: skip
    assert rows["tg64"] == {
        "file": "Q4_0", "measured": "tg64", "dali": 28, "llama_cpp": 20, "ratio": 1.4, "target": 1.5,
        "most_possible": 2.25, "samples": 9,
    }  # fmt: skip
    assert rows["tg64 at 40-50 GB/s"] == {
        "file": "Q4_0", "measured": "tg64 at 40-50 GB/s", "dali": 24, "llama_cpp": 20, "ratio": 1.2, "target": 1.5,
        "most_possible": 2.25, "samples": 5,
    }  # fmt: skip
    assert rows["roofline_percent at 40-50 GB/s"]["dali"] == 53.33
    assert list(rows) == [
        "pp512", "load_seconds", "peak_gb", "tg64", "roofline_percent", "tg64 at 40-50 GB/s", "roofline_percent at 40-50 GB/s",
    ]  # fmt: skip


def test_rows_of_rounds_alone(vs_llama_cpp):
    rounds = [vs_llama_cpp.add_roofline(a_round(30, 20, 40, 45))]
    rows = vs_llama_cpp.rows_of({"Q8_0": []}, {"Q8_0": rounds})
    assert [(row["measured"], row["ratio"]) for row in rows] == [("tg64", 1.5), ("roofline_percent", 1.5)]


def test_a_loaded_side_takes_turns_and_leaves_no_process(vs_llama_cpp):
    with vs_llama_cpp.loaded(partial(partial, pow), 2, 5) as turn:
        assert [turn(), turn()] == [32, 32]
        assert len(multiprocessing.active_children()) == 1
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("decoding", [operator.floordiv, operator.pow])  # fails to load; fails in its turn
def test_a_side_that_fails_says_so_and_leaves_no_process(vs_llama_cpp, decoding):
    def take_turn():
        with vs_llama_cpp.loaded(decoding, 1, 0) as turn:
            turn()

    with pytest.raises(SystemExit, match=f"{decoding.__name__} stopped with exit code 1"):
        take_turn()
    assert multiprocessing.active_children() == []


def test_a_process_that_fails_is_no_measurement(vs_llama_cpp):
    with pytest.raises(vs_llama_cpp.subprocess.CalledProcessError):
        vs_llama_cpp.run([sys.executable, "-c", "raise SystemExit(3)"])
    out, seconds, peak = vs_llama_cpp.run([sys.executable, "-c", "print(5)"])
    assert (out, seconds > 0, peak > 2**20) == ("5\n", True, True)


def test_agreement_and_divergence(agreement):
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    other = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    assert agreement.agreement_percent(one, other) == 66.67
    assert agreement.mean_divergence(one, one) == 0
    p, q = (logits.double().log_softmax(1) for logits in (one, other))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert agreement.mean_divergence(one, other) == pytest.approx(expected.item(), abs=1e-6)


def test_a_router_follows_another_models_order(agreement):
    router = MixtralTopKRouter(MixtralConfig(hidden_size=8, num_local_experts=4, num_experts_per_tok=2))
    torch.nn.init.normal_(router.weight)
    hidden = torch.randn(5, 8)
    logits, weights, ids = router(hidden)
    agreement.follow(router, torch.cat([logits.argsort(descending=True), logits.argsort()]), 2)
    for begin, end in (0, 3), (3, 5):  # its own order, in two calls: nothing changes
        again = router(hidden[begin:end])
        torch.testing.assert_close(again, (logits[begin:end], weights[begin:end], ids[begin:end]))
    _, weights, ids = router(hidden)
    assert ids.tolist() == logits.argsort()[:, :2].tolist()
    assert weights.sum(1).tolist() == pytest.approx([1] * 5)
    assert (weights[:, 0] < weights[:, 1]).all()


def test_a_nudge_is_one_unit_in_the_last_place(agreement):
    values = torch.tensor([1.0, -1.0, 1.5, 0.0])
    found = agreement.nudge(None, None, values)
    assert (found - values).tolist() == [2**-23, 2**-24, 2**-23, 2**-149]


def test_agreement_needs_llama_cpp(agreement, monkeypatch, capsys):
    monkeypatch.setattr(agreement, "llama_cpp", None)
    monkeypatch.setattr(sys, "argv", ["agreement.py"])
    with pytest.raises(SystemExit, match="2"):
        agreement.main()
    assert "pip install llama-cpp-python" in capsys.readouterr().err


def test_loading_is_compared_round_by_round(gguf_load):
    row = gguf_load.row("Q4_0", "dali, into memory it has", [1e9, 2e9, 3e9], [2e9, 2e9, 4e9])
    assert row["of_disk"] == 0.75
    assert (row["gb_per_s"], row["slowest"], row["fastest"], row["target"]) == (2, 1, 3, 0.7)
    assert gguf_load.row("Q4_0", "disk, into one buffer", [1e9], [1e9])["target"] is None
