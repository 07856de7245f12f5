"""Experts on disk under a GPU, on a stand-in for its driver: the bits of all of them in RAM, whoever plans and whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest

import dali
from dali.errors import DaliError, StoreError
from dali.hardware import own
from dali.llm import LLM
from dali.measure.explained import Explained
from dali.units import size
from families import random_model, save_model
from gpu.test_gpu_model import answers
from measured import measured
from on_disk import damaged, load_on_disk

POLICIES = [{}, {"assign": "greedy"}, {"policy": "hybrimoe"}, {"n_cpu_moe": 1, "vram": "200KiB"}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    return save_model(random_model("qwen3_moe", **sizes), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory):
    """The CPU's, with all experts in RAM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return answers(dali.load(directory, quant="w4"))


def load(monkeypatch, directory: Path, slots: int, **options) -> LLM:
    chosen = {"quant": "w4", "device": "cuda", "vram": "120KiB", "notify": [].append} | options
    return load_on_disk(monkeypatch, directory, slots, **chosen)


@pytest.mark.parametrize(("slots", "policies"), [*((3, policies) for policies in POLICIES), (11, {})])
def test_the_answers_are_the_cpus(driver, directory, expected, monkeypatch, slots, policies):
    llm = load(monkeypatch, directory, slots, **policies)
    assert (llm.executor.planner is not None) == (policies == {})
    assert answers(llm) == expected
    assert driver.races == []
    total, disk = llm.telemetry.total(), llm.telemetry.disk
    assert sum(disk.hits) + sum(disk.misses) == total.cpu + total.fetched > 0
    assert total.resident > 0
    llm.close()


@pytest.mark.parametrize("policies", POLICIES[:2])
def test_after_a_failure_the_next_request_works(driver, directory, expected, monkeypatch, policies):
    llm = load(monkeypatch, directory, 5, **policies)
    for call in ("cuLaunchKernel", "cuMemcpyHtoDAsync_v2"):
        driver.fail(call, 9, 700)
        with pytest.raises(DaliError, match="ILLEGAL_ADDRESS"):
            answers(llm)
        driver.fail("", 0, 0)
    with damaged(llm.loaded.pool), pytest.raises(StoreError, match="fails its checksum"):
        answers(llm)
    assert answers(llm) == expected
    llm.close()


def test_slots_in_ram_are_page_locked(driver, directory, monkeypatch):
    notes: list[str] = []
    driver.fail("cuMemHostRegister_v2", 1, 304)
    llm = load(monkeypatch, directory, 5, notify=notes.append)
    told = [note for note in notes if "could not be page-locked" in note]
    assert len(told) == 1
    assert told[0].startswith(size(llm.loaded.pool.nbytes))
    llm.close()


def test_a_profile_that_cannot_be_used_is_said_once_whoever_asks_for_it(driver, directory, monkeypatch):
    """The disk's reads at once and a GPU's plans both go by it."""
    own.write(measured())  # of another machine
    notes: list[str] = []
    load(monkeypatch, directory, 3, notify=notes.append).close()
    assert sum("is of another machine" in note for note in notes) == 1
    assert any("never measured" in note for note in notes)


def test_explained_steps_tell_what_was_read(driver, directory, expected, monkeypatch):
    llm = load(monkeypatch, directory, 3)
    explained, before = Explained(llm), sum(llm.telemetry.disk.misses)
    assert answers(llm) == expected
    steps = explained.steps()
    assert sum(step.counts["read"] for step in steps) == sum(llm.telemetry.disk.misses) - before > 0
    assert any(one.told.get("from") == "disk" for step in steps for one in step.slices if one.lane == "cpu")
    assert "read: from disk" in explained.table()
    llm.close()
