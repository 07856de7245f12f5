"""Whole models over a GPU, on a stand-in for its driver: every policy, order of things, failure and want of memory."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type

import dali
from accelerated import Turns
from dali.compiled import library
from dali.devices.base import MisuseError
from dali.errors import DaliError, UsageError
from dali.fused.release import release
from dali.hardware import own
from dali.kernels import native
from dali.llm import LLM
from dali.policies.correction import Correction
from dali.step.kv import LayerKV
from dali.units import size
from families import random_model, save_model
from gguf_models import encode_as, gguf_model, save_gguf
from measured import ACCELERATED, MACHINE, measured

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [40]]
POLICIES = [{}, {"assign": "greedy"}, {"n_cpu_moe": 1, "vram": "200KiB"}]
SYSTEMS = ["dali-paper", "hybrimoe", "freetoken", "ktransformers"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64}
    return save_model(random_model("qwen3_moe", **sizes), tmp_path_factory.mktemp("model"))


def answers(llm: LLM) -> list[list[int]]:
    found = llm.generate(PROMPTS, temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    return [[one.logprob for one in answer.logprobs] for answer in found]


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory):
    """The CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return answers(dali.load(directory, quant="w4"))


def load(directory: Path, notes: list[str] | None = None, **options) -> LLM:
    chosen = {"quant": "w4", "device": "cuda", "vram": "120KiB"} | options
    return dali.load(directory, notify=[].append if notes is None else notes.append, **chosen)


@pytest.mark.parametrize("policies", POLICIES + [{"policy": name} for name in SYSTEMS])
def test_whatever_the_policies_the_answers_are_the_cpus(driver, directory, expected, policies):
    llm = load(directory, **policies)
    assert answers(llm) == expected
    assert driver.races == []
    total = llm.stats()["total"]
    assert total["cpu"] + total["resident"] + total["fetched"] + total["prefetched"] > 0
    llm.close()


@pytest.mark.parametrize("policies", POLICIES)
def test_only_the_defaults_are_planned_in_compiled_code(driver, directory, policies):
    llm = load(directory, **policies)
    assert (llm.executor.planner is not None) == (policies == {})
    llm.close()


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def planned(request, monkeypatch):
    """Whether the defaults' plans are compiled code's."""
    if not request.param:
        monkeypatch.setattr("dali.runtime.gpu.plans", lambda policies, guarded: False)
    return request.param


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_order_of_things_the_answers_are_the_cpus(
    driver, directory, expected, seed, planned, monkeypatch
):
    driver.reset(seed)
    llm = load(directory)
    assert (llm.executor.planner is not None) == planned
    monkeypatch.setattr(llm.engine.scheduler, "step_tokens", 2 + seed)
    assert answers(llm) == expected
    assert driver.races == []
    assert llm.stats()["total"]["fetched"] > 0


def test_defaults_need_no_profile_and_say_which_one_plans_go_by(driver, directory):
    notes: list[str] = []
    dali.load(directory, quant="w4", device="cuda", notify=notes.append)
    assert any("never measured" in note and "nearest" in note for note in notes)


@pytest.mark.parametrize(("memory", "used"), [(1.0, True), (2.0, False)])
def test_a_gpu_that_was_measured_is_planned_by_its_own_profile(driver, directory, monkeypatch, memory, used):
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    figures = {**ACCELERATED, "gpu_memory": memory * (1 << 30)}  # the stand-in has 1 GiB
    own.write(measured(MACHINE, **figures))
    notes: list[str] = []
    dali.load(directory, quant="w4", device="cuda", notify=notes.append)
    assert any("Plans go by this machine, measured on 2026-11-30" in note for note in notes) == used
    assert any("never measured" in note for note in notes) != used


def test_a_gpu_that_loses_by_what_was_measured_here_is_not_used_unless_named_with_a_policy(
    driver, directory, expected, monkeypatch
):
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    own.write(measured(MACHINE, **{**ACCELERATED, "gpu_memory": 1 << 30}))
    notes: list[str] = []
    used = driver.used
    llm = load(directory, notes)  # 6 KiB an expert: launches and waits take longer than computing
    assert llm.executor is None
    assert driver.used == used
    assert any("on the CPU alone, which does all" in note for note in notes)
    assert llm.stats()["worth"]["used"] is False
    assert answers(llm) == expected
    assert llm.engine.decoder is not None

    llm = load(directory, notes, assign="two_lane")
    assert llm.executor.planner is not None
    assert llm.executor.steps is None
    assert llm.stats()["worth"]["used"] is True
    assert answers(llm) == expected


def test_steps_that_are_left_to_the_cpu_give_the_same_answers(driver, directory, expected, planned):
    llm = load(directory)
    steps = llm.executor.steps
    steps._doubt = turns = Turns(False, True, True)
    assert answers(llm) == expected
    assert min(min(times) for times in turns.told) > 0
    assert 0 < llm.stats()["steps_on_cpu"] < llm.stats()["layers"][0]["steps"]
    assert driver.races == []


def test_copies_are_timed_by_the_gpus_own_events_and_correct_the_links_times(
    driver, directory, expected, planned
):
    llm = load(directory)
    executor = llm.executor
    executor.expected.link = Correction(weight=1 / 4, rest=8)
    driver.elapse(2e6 * executor.expected.given.link_contended)  # two thousand times as long
    assert answers(llm) == expected
    assert answers(llm) == expected
    assert executor.expected.link.applied > 4
    assert executor.expected.now.link > 4 * executor.expected.given.link
    assert executor.expected.now.gpu is executor.expected.given.gpu
    assert driver.races == []


@pytest.mark.parametrize("call", ["cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuEventQuery"])
def test_after_a_failure_the_next_request_works(driver, directory, expected, planned, call):
    llm = load(directory)
    for nth in (1, 4, 9):
        driver.fail(call, nth, 700)
        with pytest.raises(DaliError, match=r"a stand-in\) failed .*ILLEGAL_ADDRESS.*\n.*cpu"):
            answers(llm)
        driver.fail("", 0, 0)
        assert answers(llm) == expected
    assert driver.races == []


def test_after_a_failure_amid_the_recovery_from_one_the_next_request_works(
    driver, directory, expected, planned
):
    llm = load(directory)
    for nth in (4, 1, 2):  # amid a step, then amid filling the slots anew
        driver.fail("cuMemcpyHtoDAsync_v2", nth, 700)
        with pytest.raises(DaliError, match="ILLEGAL_ADDRESS"):
            answers(llm)
    driver.fail("", 0, 0)
    assert answers(llm) == expected


def test_the_plan_holds_one_whole_context_that_whoever_is_live_shares(driver, directory, expected):
    llm = load(directory)
    budget = llm.engine.scheduler.budget
    assert budget == 64 * kv_token_bytes(llm)
    live = []
    plain = llm.engine.step
    llm.engine.step = lambda: (plain(), live.append(len(llm.engine.scheduler.live)))[0]
    assert answers(llm) == expected
    assert max(live) == len(PROMPTS)  # small ones side by side
    live.clear()
    llm.generate(PROMPTS, temperature=0, ignore_eos=True)
    assert max(live) == 1  # each may take the whole context
    assert answers(llm) == expected


def kv_token_bytes(llm: LLM) -> int:
    config = llm.model.config
    width = config.num_key_value_heads * config.head_dim
    return 2 * width * config.num_hidden_layers * llm.model.dtype.itemsize


def test_the_plan_counts_what_sequences_keep_and_what_a_layer_has_twice_while_it_moves(driver, directory):
    gc.collect()
    free = (1 << 30) - driver.used
    llm = load(directory, vram=None)
    token, layers = kv_token_bytes(llm), llm.model.config.num_hidden_layers
    assert llm.executor.device.budget == free - llm.engine.decoder.bytes - 64 * token - 64 * token // layers
    llm.close()


@pytest.mark.parametrize("options", [{"vram": None}, {}])
def test_the_plan_holds_several_contexts_where_experts_lose_nothing(driver, directory, expected, options):
    """All are there, or have what is asked for them."""
    llm = load(directory, parallel=3, **options)
    assert llm.engine.scheduler.budget == 3 * 64 * kv_token_bytes(llm)
    live = []
    plain = llm.engine.step
    llm.engine.step = lambda: (plain(), live.append(len(llm.engine.scheduler.live)))[0]
    llm.generate([*PROMPTS, *PROMPTS], temperature=0, ignore_eos=True)
    assert max(live) == 3  # each may take the whole context
    assert answers(llm) == expected
    llm.close()


def run_out(calls: Iterator[int], nth: int, plain: Callable[..., Any]) -> Any:
    """In place of `plain`: the `nth` call finds no memory."""

    def call(*arguments: Any) -> Any:
        if next(calls) == nth:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*arguments)

    return call


def test_after_memory_ran_out_amid_a_step_the_next_request_works(
    driver, directory, expected, planned, monkeypatch
):
    llm = load(directory)
    for nth in (1, 4, 12):
        with monkeypatch.context() as patch:
            patch.setattr(LayerKV, "place", run_out(itertools.count(1), nth, LayerKV.place))
            with pytest.raises(DaliError, match=r"ran out .*\(CUDA out of memory\).*\n.*fewer or shorter"):
                answers(llm)
        assert not llm.engine.scheduler.live
        assert answers(llm) == expected
    assert driver.races == []


def test_closing_gives_the_memory_back(driver, directory):
    gc.collect()
    before = driver.used
    llm = load(directory)
    assert driver.used > before
    llm.close()
    assert driver.used == before


def test_too_little_memory_for_the_dense_part_is_said_with_what_to_lower(driver, directory):
    gc.collect()
    driver.reset(0, total=driver.used + (200 << 10))
    with pytest.raises(
        DaliError, match=r"KiB free; .* for dense weights, .* keys and values of 64 tokens.*\n.*ctx_size"
    ):
        load(directory)


def test_memory_that_others_took_meanwhile_means_fewer_slots(driver, directory, expected):
    notes: list[str] = []
    driver.fail("cuMemAlloc_v2", 4, 2)  # the model's own come first
    llm = load(directory, notes)
    assert any("OUT_OF_MEMORY" in note and "expert slots instead" in note for note in notes)
    assert answers(llm) == expected


def test_experts_that_cannot_be_pinned_are_said_once(driver, directory, expected):
    notes: list[str] = []
    driver.fail("cuMemHostRegister_v2", 1, 304)
    llm = load(directory, notes)
    assert sum("could not be page-locked" in note for note in notes) == 1
    assert answers(llm) == expected


def test_what_layers_share_is_asked_to_be_pinned_once(driver, directory, monkeypatch):
    notes: list[str] = []

    def refuse(*arguments):
        raise library.GpuFailure("no")

    monkeypatch.setattr(library, "gpu_register", refuse)
    llm = load(directory, notes)
    (note,) = [note for note in notes if "could not be page-locked" in note]
    assert note.startswith(size(llm.loaded.pool.records[0][0].untyped_storage().nbytes()))


def test_a_single_operation_on_a_gpu_is_a_bug(driver, directory):
    device = load(directory).executor.device
    with pytest.raises(MisuseError, match="whose steps are queued as a whole"):
        device.launch(device.stream("compute"), lambda: None, (), ())


@pytest.mark.parametrize("by", ["kernels", "torch"])
def test_a_gguf_files_embeddings_and_head_stay_one_matrix(driver, tmp_path, monkeypatch, by):
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "tie_word_embeddings": True}
    path = save_gguf(gguf_model("qwen3_moe", **sizes), tmp_path / "m.gguf", encode_as(Type.Q8_0))
    expected = dali.load(path, quant="w4")
    if by == "torch":
        monkeypatch.setattr("dali.offload.build.gpu_model", lambda gpu, loaded, decoder: None)
        release(expected.model)
        expected.engine.decoder, expected.engine._native = None, False
    llm = load(path)
    model = llm.model
    if by == "torch":
        llm.engine._native = False  # torch's attention on both sides
        assert model.lm_head.weight is model.get_input_embeddings().weight
    else:
        assert model.lm_head.packed is model.get_input_embeddings().packed
    assert answers(llm) == answers(expected)


def test_lossy_parts_are_refused(driver, directory):
    with pytest.raises(UsageError, match="lossy needs a simulated accelerator"):
        load(directory, policy="hobbit", lossy=True)


def test_without_compiled_kernels_it_is_refused(driver, directory, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    with pytest.raises(DaliError, match="needs dali's compiled kernels"):
        load(directory)
