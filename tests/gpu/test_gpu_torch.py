"""Models over a GPU whose dense part torch computes, as there are no kernels for all of it; torch's part on the CPU."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from test_gpu_model import POLICIES, PROMPTS, answers, load, planned, run_out

import dali
from dali.errors import DaliError
from dali.fused.release import release
from dali.llm import LLM
from dali.offload.vram import state_size
from dali.step.kv import LayerKV
from decoding_families import DECODING, decoding_model
from families import random_model, save_model
from logits import alike, random_prompts, scored, whole_logits

__all__ = ["planned"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    return save_model(random_model("qwen2_moe", **sizes), tmp_path_factory.mktemp("model"))


@pytest.fixture
def by_torch(driver, monkeypatch):
    monkeypatch.setattr("dali.offload.build.gpu_model", lambda gpu, loaded, decoder: None)
    return driver


def plain(directory: Path) -> LLM:
    """The CPU, its dense part torch's as over a GPU."""
    llm = dali.load(directory, quant="w4")
    release(llm.model)
    llm.engine.decoder, llm.engine._native = None, False
    return llm


def over_gpu(directory: Path, **options) -> LLM:
    llm = load(directory, **options)
    llm.engine._native = False  # torch's attention on both sides
    return llm


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return answers(plain(directory))


@pytest.mark.parametrize("policies", POLICIES)
def test_the_answers_are_those_of_torch_on_the_cpu_which_is_said(by_torch, directory, expected, policies):
    notes: list[str] = []
    llm = over_gpu(directory, notes=notes, **policies)
    assert any("torch computes all but its experts" in note for note in notes)
    assert answers(llm) == expected
    assert by_torch.races == []
    llm.close()


@pytest.mark.parametrize("family", [f for f in ("deepseek_v3", "lfm2_moe", "nemotron_h") if f in DECODING])
def test_models_with_parts_that_there_are_no_kernels_for_run_so_which_is_said(driver, tmp_path, family):
    model = decoding_model(family)
    directory = save_model(model, tmp_path)
    expected = answers(plain(directory))
    notes: list[str] = []
    # Side by side as on the CPU: what torch makes of a sequence depends, in the last bit, on those beside it.
    llm = over_gpu(directory, notes=notes, vram="300KiB", parallel=len(PROMPTS))
    assert any("torch computes all but its experts" in note for note in notes)
    assert answers(llm) == expected
    assert llm.engine.budget.size == state_size(llm.engine)
    # Which may both be wrong alike: so transformers' own, too, of a prompt that comes in several steps.
    tokens = random_prompts((20,))[0]
    assert alike(scored(llm, tokens, 5), whole_logits(model, tokens)) > 0.9
    assert driver.races == []
    llm.close()


def test_shared_experts_run_while_the_routing_is_on_its_way(by_torch, directory, expected, planned):
    llm = over_gpu(directory)
    begun: list[str] = []
    beside = llm.executor._beside
    llm.executor._beside = [
        lambda hidden, work=work: (begun.append("shared"), work(hidden)) for work in beside
    ]
    assert answers(llm) == expected
    assert by_torch.races == []
    assert len(begun) == llm.stats()["total"]["steps"]
    llm.close()


@pytest.mark.parametrize("where", ["keys and values", "a layer's beginning", "amid a layer"])
def test_after_memory_ran_out_amid_a_step_the_next_request_works(
    by_torch, directory, expected, planned, monkeypatch, where
):
    llm = over_gpu(directory)
    for nth in (1, 4, 12):
        calls = itertools.count(1)
        with monkeypatch.context() as patch:
            if where == "keys and values":
                patch.setattr(LayerKV, "append", run_out(calls, nth, LayerKV.append))
            elif where == "a layer's beginning":
                patch.setattr(llm.executor, "_begin", run_out(calls, nth, llm.executor._begin))
            else:  # where shared experts run
                patch.setattr(
                    llm.executor,
                    "_beside",
                    [run_out(calls, nth, lambda hidden: None)] * len(llm.executor._beside),
                )
            with pytest.raises(DaliError, match=r"ran out .*\(CUDA out of memory\).*\n.*fewer or shorter"):
                answers(llm)
        assert not llm.engine.scheduler.live
        assert answers(llm) == expected
    assert by_torch.races == []
