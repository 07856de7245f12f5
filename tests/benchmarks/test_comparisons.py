"""What the comparisons with llama.cpp and the disk work out from their measurements."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def vs_llama_cpp(benchmarks):
    return import_module("vs_llama_cpp")


@pytest.fixture
def agreement(benchmarks):
    return import_module("agreement")


@pytest.fixture
def gguf_load(benchmarks):
    return import_module("gguf_load")


def sample(speed: float, **more: float) -> dict[str, float]:
    return {"pp512": 10 * speed, "tg64": speed, "load_seconds": 1.0, "peak_gb": 2.0, **more}


def test_pairs_alternate_who_goes_first_and_share_the_roofline(vs_llama_cpp):
    order = []

    def ours():
        order.append("dali")
        return sample(20, token_bytes=1e9, read_bandwidth=40e9)

    def theirs():
        order.append("llama_cpp")
        return sample(10)

    pairs = [vs_llama_cpp.pair(number, ours, theirs) for number in range(2)]
    assert order == ["dali", "llama_cpp", "llama_cpp", "dali"]
    for both in pairs:  # 1 GB a token at 40 GB/s: at most 40 tokens a second
        assert both["dali"]["roofline_percent"] == pytest.approx(50)
        assert both["llama_cpp"]["roofline_percent"] == pytest.approx(25)
        assert "token_bytes" not in both["dali"]


def test_the_ratio_is_the_median_of_the_pairs_ratios(vs_llama_cpp):
    speeds = [(10, 10), (30, 10), (8, 4)]
    pairs = {
        "Q4_0": [
            {"dali": sample(ours, roofline_percent=80), "llama_cpp": sample(theirs, roofline_percent=80)}
            for ours, theirs in speeds
        ]
    }
    rows = {row["measured"]: row for row in vs_llama_cpp.rows_of(pairs)}
    assert rows["tg64"] == {
        "file": "Q4_0", "measured": "tg64", "dali": 10, "llama_cpp": 10, "ratio": 2, "target": 1.5, "most_possible": 1.25,
        "pairs": 3,
    }  # fmt: skip
    assert rows["peak_gb"]["target"] is None


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
