"""What a simulated accelerator's memory is for: experts, and what sequences keep, who wait where it has no room for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dali
from accelerated import load, slow_machine
from dali.doctor import checkpoint
from dali.doctor.outline import read_outline
from dali.doctor.plan import Device, Free, make_plan
from dali.errors import DaliError
from dali.hardware import profile
from dali.loading.room import DEVICE_WORK, MOST_STEP
from dali.offload.vram import state_size
from dali.options import LoadOptions
from dali.step.size import Reservation
from decoding_families import DECODING, decoding_model
from engine.test_budget import Counted, prompt
from families import random_model, save_model

CONTEXT = 64
NONE: dict[str, Any] = {"prefetch": "none"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model(random_model("qwen3_moe"), tmp_path_factory.mktemp("model"))


class Sizes:
    """Of a model on a simulated accelerator: bytes of its dense part, of an expert, and of what a whole context keeps."""

    def __init__(self, llm: dali.LLM) -> None:
        assert llm.engine.budget is not None
        whole = Reservation(CONTEXT, MOST_STEP)
        self.whole, self.moving = (
            each(whole) for each in (llm.engine.budget.size.nbytes, llm.engine.budget.size.moving)
        )
        model = random_model("qwen3_moe")
        self.dense = sum(one.nbytes for one in (*model.parameters(), *model.buffers())) - self._experts(llm)
        self.record, self.experts = llm.layout.record_bytes, llm.loaded.pool.experts * llm.loaded.pool.layers

    @staticmethod
    def _experts(llm: dali.LLM) -> int:
        layout = llm.layout.shape
        return 4 * 3 * 8 * len(layout.matrices) * layout.hidden * layout.intermediate


@pytest.fixture(scope="module")
def sizes(saved) -> Sizes:
    return Sizes(load(saved, device="sim:paper", vram=0, dtype="float32", **NONE))


def machine(folder: Path, nbytes: int) -> str:
    """One with so much memory."""
    path = slow_machine(folder)
    figures = json.loads(path.read_text())
    figures["figures"]["gpu_memory"]["value"] = nbytes
    path.write_text(json.dumps(figures))
    return f"sim:{path}"


def on(saved: Path, folder: Path, nbytes: int, **options: Any) -> dali.LLM:
    return load(saved, device=machine(folder, nbytes), dtype="float32", **NONE | options)


def test_one_whole_context_has_its_room_and_experts_the_rest(saved, sizes, tmp_path):
    beside = sizes.dense + DEVICE_WORK + sizes.moving
    llm = on(saved, tmp_path, beside + sizes.whole + 5 * sizes.record)
    assert llm.engine.budget.nbytes == sizes.whole
    assert llm.executor.device.budget == 5 * sizes.record


def test_more_of_them_have_where_experts_lose_nothing(saved, sizes, tmp_path):
    beside = sizes.dense + DEVICE_WORK + sizes.moving
    llm = on(saved, tmp_path, beside + 3 * sizes.whole + sizes.experts * sizes.record, parallel=4)
    assert llm.engine.budget.nbytes == 3 * sizes.whole
    assert llm.executor.device.budget == sizes.experts * sizes.record
    few = on(saved, tmp_path, beside + 3 * sizes.whole + 2 * sizes.record, parallel=4)
    assert few.engine.budget.nbytes < 3 * sizes.whole + 2 * sizes.record


def test_experts_have_what_is_asked_for_them_and_sequences_what_is_left(saved, sizes, tmp_path):
    memory = sizes.dense + 2 * sizes.whole + 9 * sizes.record
    for parallel, room in ((1, 1), (2, 2), (5, 2)):
        llm = on(saved, tmp_path, memory, vram=9 * sizes.record, parallel=parallel)
        assert llm.executor.device.budget == 9 * sizes.record
        assert llm.engine.budget.nbytes == room * sizes.whole


def test_layers_that_shall_be_there_are(saved, sizes, tmp_path):
    memory = sizes.dense + DEVICE_WORK + sizes.moving + 2 * sizes.whole + 8 * sizes.record
    llm = on(saved, tmp_path, memory, n_cpu_moe=2, parallel=4, prefetch=None)
    assert llm.executor.device.used == 8 * sizes.record
    assert llm.engine.budget.nbytes == 2 * sizes.whole


def test_a_context_without_room_is_refused_with_what_helps(saved, sizes, tmp_path):
    memory = sizes.dense + sizes.whole - 1
    with pytest.raises(DaliError, match=r"keys and values of 64 tokens.*\n.*Lower ctx_size"):
        on(saved, tmp_path, memory, vram=0)
    on(saved, tmp_path, memory, vram=0, ctx_size=CONTEXT - 1)


def test_whole_contexts_wait_for_each_other_and_no_byte_more_is_taken(saved, sizes, tmp_path, monkeypatch):
    """What the prefix cache keeps is in RAM, and beside the count."""
    prompts = [prompt(1, 40), prompt(1, 40)[:30] + prompt(2, 5), prompt(3, 50)]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": None, "ignore_eos": True}
    expected = [one.tokens for one in load(saved, dtype="float32").generate(prompts, **asked)]
    llm = on(saved, tmp_path, sizes.dense + 2 * sizes.whole, vram=0, parallel=2, cache_ram="64MiB")
    live, counted = [], Counted(monkeypatch)
    sequences = [llm.sequence(ids, **asked) for ids in prompts]
    llm.loop.complete(sequences, after_step=lambda _: live.append(len(llm.engine.scheduler.live)))
    assert [one.generated for one in sequences] == expected
    assert max(live) == 2
    assert sizes.whole < counted.most <= llm.engine.budget.nbytes + sizes.moving
    assert llm.generate(prompts[0] + prompt(9, 3), **asked).cached_tokens == 40
    assert counted.most <= llm.engine.budget.nbytes + sizes.moving


@pytest.mark.parametrize("options", [{}, {"cache_type": "q8"}])
@pytest.mark.parametrize("family", ["deepseek_v2", "gpt_oss"])
def test_what_sequences_keep_is_foreseen_before_the_model_is_fused(tmp_path, family, options):
    directory = save_model(random_model(family), tmp_path / "model")
    llm = load(directory, device="sim:paper", vram=0, **NONE | options)
    assert llm.engine.budget.size == state_size(llm.engine)


@pytest.mark.skipif("lfm2_moe" not in DECODING, reason="of newer transformers")
def test_copies_for_drafts_are_counted(tmp_path):
    directory = save_model(decoding_model("lfm2_moe"), tmp_path / "model")
    llm = load(directory, device="sim:paper", vram=0, draft="ngram", **NONE)
    assert len(llm.generate([5, 9, 17], max_tokens=None, ignore_eos=True).tokens) == llm.ctx_size - 3


@pytest.mark.parametrize(("parallel", "experts"), [(1, 30), (4, 30), (4, 200)])
def test_a_plan_from_headers_is_the_one_that_loading_makes(dali_tiny, tmp_path, parallel, experts):
    path = machine(tmp_path, DEVICE_WORK + (9 << 20) + experts * 40960)
    options = LoadOptions(device=path, quant="w8", parallel=parallel, prefetch="none")
    llm = dali.load(dali_tiny, device=path, quant="w8", parallel=parallel, prefetch="none")
    device = Device(path, profile.load(path.removeprefix("sim:")), True)
    found = make_plan(
        checkpoint.sizes_of(read_outline(dali_tiny)), options, Free(2**34), compiled=True, device=device
    )
    assert found.kept == llm.engine.budget.nbytes
    assert found.resident == min(llm.executor.device.budget // llm.layout.record_bytes, found.all_slots)
