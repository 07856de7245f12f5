"""A model whose experts an accelerator shares: the CPU's answers bit for bit, whatever it may hold or whatever fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

import dali
from accelerated import (
    LAYERS,
    PROMPTS,
    Turns,
    accelerate,
    answers,
    calibration_text,
    load,
    same,
    slow_machine,
)
from dali.devices import SimDevice
from dali.hardware import profile
from dali.hardware.cost import CostModel, ExpertSize
from dali.hooks import seam
from dali.llm import LLM
from dali.offload import build as offload
from dali.offload import calibrate
from dali.options import LoadOptions
from dali.policies import names
from dali.policies.once.vram import MOST_SCRATCH, residents
from dali.step.context import current_step
from decoding_families import DECODING, decoding_model
from families import random_model, save_model

FAMILIES = list(LAYERS)
CHUNK = 6  # tokens a step: prompts in pieces, beside other sequences' decoding


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of our own, and a short text of the tiny models' words to calibrate on."""
    folder = tmp_path_factory.mktemp("offload")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(folder / "cache"))
        patch.setattr(calibrate, "TEXT", calibration_text(folder / "text.txt", 200))
        yield folder


@pytest.fixture(scope="module")
def machine(folder: Path) -> str:
    return f"sim:{slow_machine(folder)}"


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Path]:
    return {family: save_model(random_model(family), folder / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def on_cpu(saved: dict[str, Path]) -> dict[str, Any]:
    return {family: answers(load(directory), CHUNK) for family, directory in saved.items()}


@pytest.fixture
def directory(saved: dict[str, Path]) -> Path:
    return saved["qwen3_moe"]


@pytest.fixture
def expected(on_cpu: dict[str, Any]) -> Any:
    return on_cpu["qwen3_moe"]


@pytest.fixture(scope="module")
def record(saved: dict[str, Path]) -> int:
    """Bytes of one expert's slot."""
    return load(saved["qwen3_moe"]).layout.record_bytes


def test_a_step_in_three_that_is_left_to_the_cpu_changes_no_bit(
    directory: Path, expected: Any, machine: str, record: int
) -> None:
    llm = load(directory, device=machine, vram=12 * record)
    assert llm.executor is not None
    steps: Any = llm.executor.steps
    steps._doubt = turns = Turns(False, True, False)
    assert same(answers(llm, CHUNK), expected)
    assert min(min(times) for times in turns.told) > 0
    assert 0 < llm.stats()["steps_on_cpu"] < llm.stats()["layers"][0]["steps"]
    assert llm.stats()["worth"]["used"]
    assert not llm.stats()["reverted"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("slots", "policies"),
    [
        (0, {}),
        (1, {"assign": "gpu", "prefetch": "none"}),
        (5, {"assign": "greedy", "prefetch": "next_gate", "cache": "lru"}),
        (12, {}),
        (12, {"assign": "gpu", "prefetch": "ridge", "cache": "lfu"}),
        (999, {"assign": "cpu_on_miss", "cache": "static"}),
    ],
)
def test_answers_equal_the_cpus_bit_for_bit(
    saved: dict[str, Path],
    on_cpu: dict[str, Any],
    machine: str,
    family: str,
    slots: int,
    policies: dict[str, str],
) -> None:
    """Several sequences at once, their prompts in chunks; a shared expert computed early (deepseek_v2) changes nothing."""
    for seed in range(2):
        llm = load(saved[family], device=machine, vram=slots * 8192, seed=seed, **policies)
        assert same(answers(llm, CHUNK), on_cpu[family])
        assert llm.executor is not None
        assert llm.executor.device.used <= slots * 8192


@pytest.mark.skipif("nemotron_h" not in DECODING, reason="of newer transformers")
def test_experts_in_a_latent_space_are_not_given_what_the_shared_ones_are(folder: Path, machine: str) -> None:
    directory = save_model(decoding_model("nemotron_h", moe_latent_size=32), folder / "latent")
    llm = load(directory, device=machine, vram=5 * 8192, prefetch="none")
    assert same(answers(llm, CHUNK), answers(load(directory), CHUNK))


def test_leading_dense_layers_are_skipped(saved: dict[str, Path], machine: str) -> None:
    """DeepSeek-V2's first layer has no experts: the next MoE layer is counted among those that have."""
    llm = load(saved["deepseek_v2"], device=machine, vram=10 * 8192, prefetch="residual")
    assert llm.executor is not None
    predictor: Any = llm.executor.prefetcher._predictor
    assert (len(predictor.routers), len(predictor.shifts)) == (2, 1)
    answers(llm)
    assert len(llm.stats()["layers"]) == 2
    assert llm.stats()["layers"][1]["prefetch_used"] > 0


def test_stats_are_modelled_and_leave_calibration_out(directory: Path, machine: str) -> None:
    llm = load(directory, device=machine, vram=12 * 8192)
    assert all(layer["lookups"] == 0 for layer in map(_with_lookups, llm.stats()["layers"]))
    answers(llm)
    stats = llm.stats()
    assert stats["modelled"]
    total = _with_lookups(stats["total"])
    assert total["lookups"] == total["resident"] + total["prefetched"] + total["fetched"] + total["cpu"] > 0
    assert total["routed_tokens"] == sum(len(prompt) + 5 for prompt in PROMPTS) * 3 * 3  # top-3 in 3 layers
    assert total["link_bytes"] % llm.layout.record_bytes == 0
    assert total["seconds"] < llm.executor.device.now()  # type: ignore[union-attr]


def _with_lookups(layer: dict[str, Any]) -> dict[str, Any]:
    return layer | {"lookups": sum(layer[name] for name in ("resident", "prefetched", "fetched", "cpu"))}


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "Unknown device 'tpu'.*\n.*sim:PROFILE"),
        ({"device": "sim"}, "Unknown device 'sim'"),
        ({"device": "sim:cray"}, f"no hardware profile 'cray'.*\n.*{', '.join(profile.known())}"),
        ({"profile": "cray"}, "no hardware profile 'cray'"),
        ({"profile": "egpu-x4"}, "profile egpu-x4 is not the one of sim:paper"),
        ({"assign": "best"}, f"no assign policy 'best'.*\n.*{', '.join(names('assign'))}"),
        ({"prefetch": "all"}, f"no prefetch policy 'all'.*\n.*{', '.join(names('prefetch'))}"),
        ({"cache": "fifo"}, f"no cache policy 'fifo'.*\n.*{', '.join(names('cache'))}"),
        ({"assign": "layerwise"}, "needs a number of layers"),
        ({"assign": "greedy", "n_cpu_moe": 1}, "exclude each other"),
        ({"vram": -1}, "cannot be -1"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, directory: Path, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("dali.entry.load_source", lambda *arguments: pytest.fail("loaded"))
    with pytest.raises(dali.UsageError, match=words):
        load(directory, **{"device": "sim:paper"} | options)


def test_a_profile_of_another_schema_is_refused(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(profile.load("paper").to_json()) | {"schema": 99}))
    with pytest.raises(dali.DaliError, match=r"mine.json has schema 99.*\n.*Measure the machine again"):
        load(directory, device=f"sim:{path}")
    with pytest.raises(dali.DaliError, match="schema 99"):
        load(directory, device="sim:paper", profile=str(path))


def test_more_memory_than_there_is_is_refused(directory: Path) -> None:
    with pytest.raises(
        dali.UsageError,
        match=r"^vram asks for 24.0 GiB; paper has 24.0 GiB beside dense weights and the keys and values of 64 tokens."
        r"\nGive vram 24575MiB or less",
    ):
        load(directory, device="sim:paper", vram="24GiB")
    load(directory, device="sim:paper", vram="24575MiB")
    with pytest.raises(dali.UsageError, match=r"asks for 1024.0 GiB"):
        load(directory, device="sim:paper", vram="1024GiB")


def test_without_a_budget_experts_get_what_is_left(directory: Path, expected: Any) -> None:
    llm = load(directory, device="sim:laptop-8gb")
    assert llm.executor is not None
    assert llm.executor.residency.resident_slots == 24  # all of them
    assert llm.executor.device.used == 24 * llm.layout.record_bytes
    assert same(answers(llm, CHUNK), expected)


@pytest.mark.parametrize("cpu_layers", [0, 1, 3])
def test_the_first_layers_stay_on_the_cpu_and_the_others_wholly_on_the_accelerator(
    directory: Path, machine: str, expected: Any, record: int, cpu_layers: int
) -> None:
    notes: list[str] = []
    slots = 8 * (3 - cpu_layers)
    llm = load(
        directory, device=machine, vram=(slots + 5) * record, n_cpu_moe=cpu_layers, notify=notes.append
    )
    assert llm.executor is not None
    assert llm.executor.device.used == slots * record
    assert same(answers(llm, CHUNK), expected)
    for index, layer in enumerate(llm.stats()["layers"]):
        there, elsewhere = ("cpu", "resident") if index < cpu_layers else ("resident", "cpu")
        assert layer[there] > 0
        assert layer[elsewhere] == layer["fetched"] == layer["prefetched"] == layer["swaps"] == 0
    assert notes == []


def test_layers_that_are_not_there_or_do_not_fit_are_refused(
    directory: Path, machine: str, record: int
) -> None:
    with pytest.raises(dali.UsageError, match=r"^n_cpu_moe 4 is more than the 3 MoE layers"):
        load(directory, device=machine, n_cpu_moe=4)
    with pytest.raises(
        dali.UsageError, match=r"leaves 2 MoE layers to .*room for 1 of them.\nGive n_cpu_moe 2 or more"
    ) as error:
        load(directory, device=machine, vram=15 * record, n_cpu_moe=1)
    load(directory, device=machine, vram=re.search(r"vram (\w+)", error.value.fix)[1], n_cpu_moe=1)
    with pytest.raises(
        dali.UsageError, match=r"leaves 1 MoE layer to .*, \d+\.\d KiB of experts; it has no room for it\."
    ):
        load(directory, device=machine, vram=1, n_cpu_moe=2)
    short = SimDevice(24 * record, capacity=15 * record)  # gives less than it has
    with pytest.raises(dali.UsageError, match=r"leaves 2 MoE layers to .*room for 1 of them"):
        accelerate(load(directory), LoadOptions(device=machine, n_cpu_moe=1), lambda: short)


@pytest.mark.parametrize(("budget", "told"), [("0", False), ("1", True), ("4000", True)])
def test_a_budget_below_one_expert_leaves_all_to_the_cpu(
    directory: Path, machine: str, expected: Any, budget: str, told: bool
) -> None:
    notes: list[str] = []
    llm = load(directory, device=machine, vram=budget, notify=notes.append)
    assert len(notes) == told
    assert all(re.match(r"The (1 B|3\.9 KiB) of .* hold no expert of \d+KiB", note) for note in notes)
    assert same(answers(llm, CHUNK), expected)
    total = llm.stats()["total"]
    assert (total["resident"], total["fetched"], total["prefetched"], total["link_bytes"]) == (0, 0, 0, 0)
    assert total["cpu"] > 0


@pytest.mark.parametrize(("room", "slots"), [(24, 24), (12, 9), (1, 1), (0, 0)])
def test_a_device_that_runs_out_of_memory_gets_fewer_slots(
    directory: Path, machine: str, expected: Any, record: int, room: int, slots: int
) -> None:
    notes: list[str] = []
    llm = accelerate(
        load(directory),
        LoadOptions(device=machine),
        lambda: SimDevice(24 * record, capacity=room * record),
        notes.append,
    )
    steps = [note for note in notes if "cannot allocate" in note]
    tried = [int(note.split()[-6]) for note in steps]
    assert tried == [18, 13, 9, 6, 4, 3, 2, 1, 0][: len(tried)]
    assert (tried or [24])[-1] == slots
    assert llm.executor is not None
    assert llm.executor.device.used == slots * record
    assert same(answers(llm, CHUNK), expected)


def test_a_smaller_device_than_asked_for_says_so(directory: Path, machine: str, record: int) -> None:
    notes: list[str] = []
    accelerate(
        load(directory),
        LoadOptions(device=machine, vram=9 * record),
        lambda: SimDevice(5 * record),
        notes.append,
    )
    assert any("left for experts" in note for note in notes)


def test_routers_that_cannot_be_called_alone_switch_prefetching_off(
    monkeypatch: pytest.MonkeyPatch, directory: Path, machine: str, expected: Any
) -> None:
    plain = Qwen3MoeTopKRouter.forward

    def refuse(router: Any, hidden: torch.Tensor) -> Any:
        if hidden.is_meta or current_step():  # what a step calls, and what it keeps, is told before
            return plain(router, hidden)
        raise TypeError("forward() missing 1 required positional argument: 'input_ids'")

    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Qwen3MoeTopKRouter, "forward", refuse)
        llm = load(directory, device=machine, vram=12 * 8192, notify=notes.append)
        assert seam.routers(llm.model, 64) is None
    assert notes == ["Prefetching is off: the routers of Qwen3MoeForCausalLM cannot be called on their own."]
    for (tokens, logits), (theirs, others) in zip(answers(llm, CHUNK), expected, strict=True):
        assert tokens == theirs
        torch.testing.assert_close(logits, others, rtol=0.02, atol=0.02)  # unfused routers round differently
    assert llm.stats()["total"]["prefetch_used"] == 0


def test_a_model_that_routes_nowhere_else_has_no_routers(saved: dict[str, Path]) -> None:
    model = load(saved["qwen3_moe"]).model
    model.model.layers[1].mlp.router = torch.nn.Linear(64, 8)  # two candidates
    assert seam.routers(model, 64) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_refused(directory: Path) -> None:
    with pytest.raises(dali.DaliError, match="no CUDA device"):
        load(directory, device="cuda", profile="paper")


# Faults


def tokens(llm: LLM) -> list[list[int]]:
    return [one.tokens for one in llm.generate(PROMPTS, temperature=0, max_tokens=6, ignore_eos=True)]


def test_a_copy_that_fails_amid_an_answer_costs_that_answer_only(
    directory: Path, machine: str, record: int
) -> None:
    wanted = tokens(load(directory))
    failed = 0
    for copy in range(10, 90, 8):
        device = SimDevice(12 * record, seed=copy, failing_copy=copy)
        llm = accelerate(
            load(directory), LoadOptions(device=machine, assign="greedy"), lambda device=device: device
        )
        try:
            assert tokens(llm) == wanted
        except dali.DaliError as error:
            failed += 1
            assert f"Copy {copy} of sim failed" in str(error)  # noqa: PT017
            assert llm.engine.scheduler.live == []
        assert tokens(llm) == wanted
    assert failed > 5


def test_a_copy_that_fails_while_loading_is_an_error(directory: Path, machine: str, record: int) -> None:
    with pytest.raises(dali.DaliError, match="Copy 3 of sim failed"):
        accelerate(
            load(directory), LoadOptions(device=machine), lambda: SimDevice(12 * record, failing_copy=3)
        )


def test_an_interrupted_step_can_be_tried_again(directory: Path, machine: str, record: int) -> None:
    """Ctrl-C while copies are in flight: the sequences live on, their next step starts over."""
    wanted = tokens(load(directory))
    llm = accelerate(
        load(directory), LoadOptions(device=machine, assign="gpu"), lambda: SimDevice(6 * record, seed=1)
    )
    assert llm.executor is not None
    sequences = [llm.sequence(prompt, temperature=0, max_tokens=6, ignore_eos=True) for prompt in PROMPTS]
    for sequence in sequences:
        llm.engine.add(sequence)
    kernel, calls, interrupts = llm.executor._kernel, [0], 0

    def interrupted(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 40:  # more than a step has
            calls[0] = 0
            raise KeyboardInterrupt
        kernel(*arguments)

    llm.executor._kernel = interrupted
    while any(sequence.finish_reason is None for sequence in sequences):
        try:
            llm.engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 2
    assert [sequence.generated for sequence in sequences] == wanted


# Slots and times


@pytest.mark.parametrize(("layers", "experts"), [(1, 8), (26, 64), (48, 128)])
def test_slots_are_split_into_residents_and_scratch(layers: int, experts: int) -> None:
    for slots in range(layers * experts + 3):
        capacity = residents(slots, layers, experts)
        scratch = slots - layers * capacity
        assert 0 <= capacity <= experts
        assert scratch >= min(slots, 1) or capacity == experts
        assert capacity == experts or scratch < max(slots // 4, 1) + layers or scratch < MOST_SCRATCH + layers


def test_modelled_dense_time_covers_all_dense_weights_once(directory: Path) -> None:
    llm = load(directory)
    costs = CostModel(profile.load("paper"), ExpertSize(64, 40, 3, {"w8": 8192}), "w8", 8)
    seconds = offload.dense_seconds(llm.model, costs, 3)
    streamed = (llm.dense_bytes - llm.model.get_input_embeddings().weight.nbytes) / profile.load("paper")[
        "gpu_bandwidth"
    ]
    assert 3 * seconds(1) > streamed
    assert seconds(1) <= seconds(4096)
    assert offload.predict_seconds(seam.routers(llm.model, 64), costs)(1) < seconds(1)


@pytest.mark.parametrize("part", ["prefetch", "cache"])
def test_whole_layers_and_policies_that_move_experts_exclude_each_other(part):
    with pytest.raises(dali.UsageError, match=f"^n_cpu_moe 1 .* {part} lru"):
        dali.load(device="sim:paper", n_cpu_moe=1, **{part: "lru"})
