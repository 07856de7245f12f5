"""Experts on disk, in RAM and on a simulated accelerator at once: the bits of all of them in RAM, by the profile's disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import dali
from accelerated import LAYERS, answers, same, slow_machine
from dali.cli.chat.answer import Answer
from dali.devices import SimDevice
from dali.errors import DaliError, StoreError, UsageError
from dali.hardware import profile
from dali.hardware.cost import disk_costs
from dali.kernels import native
from dali.llm import LLM
from dali.loading.room import HEADROOM
from dali.measure.explained import Explained
from dali.measure.recorder import record
from dali.policies import Policies, create
from dali.replay import timeline
from dali.replay.disk import pools
from dali.replay.shapes import shape_of
from dali.replay.steps import forwards
from dali.store.disk_pool import DiskPool
from dali.units import parse_size
from families import random_model, save_model
from on_disk import damaged, load_on_disk

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
TOP_K = {"qwen3_moe": 3, "deepseek_v2": 3, "gpt_oss": 3}
# Slots in RAM, those of the accelerator, and who decides.
SETTINGS = [
    (0, 3, {"assign": "gpu", "prefetch": "none", "cache": "lru"}),
    (1, 8, {"assign": "two_lane", "prefetch": "next_gate", "cache": "workload"}),
    (7, 8, {}),
    (7, 0, {"assign": "greedy"}),
    (100, 12, {"policy": "hybrimoe"}),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> str:
    return str(slow_machine(tmp_path_factory.mktemp("machine")))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: save_model(random_model(family), folder / family) for family in LAYERS}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One for all, so that predictors are calibrated once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv(native.VARIABLE, raising=False)
        yield


@pytest.fixture(scope="module")
def expected(saved) -> dict[str, Any]:
    return {family: answers(dali.load(path, quant="w8")) for family, path in saved.items()}


def load(
    monkeypatch: pytest.MonkeyPatch, path: Path | None, machine: str, slots: int, vram: int, **options: Any
) -> LLM:
    """`slots` in RAM, and `vram` of the accelerator."""
    record_bytes = 0
    if vram:
        record_bytes = dali.load(path, quant="w8").layout.record_bytes
    given = {"quant": "w8", "device": f"sim:{machine}", "vram": vram * record_bytes} | options
    return load_on_disk(monkeypatch, path, slots, **given)


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize(("more", "vram", "policies"), SETTINGS)
def test_not_a_bit_changes(monkeypatch, saved, machine, expected, family, more, vram, policies):
    llm = load(monkeypatch, saved[family], machine, TOP_K[family] + more, vram, **policies)
    for step_tokens in (512, 3):
        assert same(answers(llm, step_tokens), expected[family])
    total, disk, tiers = llm.telemetry.total(), llm.telemetry.disk, llm.telemetry.tiers
    assert sum(disk.hits) + sum(disk.misses) == total.cpu + total.fetched
    assert tiers == {
        "accelerator": total.resident + total.prefetched,
        "ram": sum(disk.hits),
        "disk": sum(disk.misses),
    }
    assert (vram < LAYERS[family] + 1) == (tiers["accelerator"] == 0)  # one slot is for copies
    if more == 100:  # room for all: each is read once
        assert disk.reads <= LAYERS[family] * llm.loaded.pool.experts


@pytest.mark.parametrize("slots", [4, 8])
def test_what_was_read_is_told_and_computed_after_its_read(monkeypatch, saved, machine, expected, slots):
    llm = load(monkeypatch, saved["gpt_oss"], machine, slots, 8, prefetch="none")
    explained, before = Explained(llm), sum(llm.telemetry.disk.misses)
    assert same(answers(llm), expected["gpt_oss"])
    steps = explained.steps()
    assert sum(step.counts["read"] for step in steps) == sum(llm.telemetry.disk.misses) - before > 0
    for step in steps:
        read = {one.what: one.end for one in step.slices if one.lane == "disk"}
        late = [one for one in step.slices if one.told.get("from") == "disk"]
        assert {one.what for one in late} == read.keys()
        assert all(one.start >= read[one.what] - 1e-9 for one in late)
    assert "read" in explained.table().splitlines()[1]


def test_times_are_modelled_whatever_the_schedule_and_this_machine(monkeypatch, saved, machine):
    found = []
    for schedule in range(2):

        class Scheduled(SimDevice):
            def __init__(self, budget: int, *, seed: int, other: int = schedule, **more: Any) -> None:
                super().__init__(budget, seed=other, **more)

        monkeypatch.setattr("dali.offload.simulated.SimDevice", Scheduled)
        llm = load(monkeypatch, saved["gpt_oss"], machine, 5, 8, prefetch="none")
        answers(llm)
        found.append((llm.executor.device.now(), llm.telemetry.layers, llm.telemetry.disk))
    assert found[0] == found[1]
    now, _, disk = found[0]
    costs = disk_costs(profile.load(machine))
    bytes_alone = disk.read_bytes / costs.bandwidth
    assert bytes_alone < disk.busy_seconds <= bytes_alone + disk.reads * costs.latency
    assert 0 < disk.stalled_seconds < disk.busy_seconds < now
    assert llm.stats()["modelled"]


@pytest.mark.parametrize(("slots", "slack"), [(120, 0.002), (60, 0.03)])
def test_a_live_run_reads_what_a_replay_does(monkeypatch, machine, slots, slack):
    """With few slots a replay gives up experts of the step under way as soon as they are computed, and decides a little else."""
    kinds = {"assign": "two_lane", "prefetch": "none", "cache": "static"}
    llm = load(monkeypatch, None, machine, slots, 60, seed=3, **kinds)
    pool = llm.loaded.pool
    fresh = DiskPool(pool.path, slots, slots, pool.depth)
    pool._cache, pool._arena = fresh._cache, fresh._arena  # without what was read to try it
    llm.telemetry.clear()
    began, residency = llm.executor.device.now(), llm.executor.residency
    prompts = [llm.encode("Once upon a time there was")]
    trace = record(llm, prompts, max_tokens=12, temperature=0, ignore_eos=True)
    live, seconds = llm.telemetry.disk, llm.executor.device.now() - began

    monkeypatch.setattr(timeline, "SCRATCH", residency.scratch_slots)
    shape, capacity = shape_of(trace, "own"), residency.resident_slots // trace.layers
    sizes = {"layers": trace.layers, "experts": trace.experts, "capacity": capacity, "seed": 3}
    chosen = Policies(
        create("assign", "two_lane"), create("prefetch", "none"), create("cache", "static", **sizes)
    )
    figures = profile.load(machine)
    tier = pools.make("fading", trace, slots, disk_costs(figures), shape.expert_bytes)
    replay = timeline.Timeline(trace, chosen, shape, shape.costs(figures, 512), capacity, True, tier)
    result = replay.run(forwards(trace, 1))
    wanted = sum(live.hits) + sum(live.misses)
    assert tier.counts.hits + tier.counts.missed == wanted
    assert tier.counts.missed == tier.counts.reads == pytest.approx(sum(live.misses), abs=slack * wanted)
    assert live.reads == sum(live.misses) > 0
    assert result.seconds + result.prefill_seconds == pytest.approx(seconds, rel=0.03)


def test_a_step_that_fails_leaves_a_model_that_answers(monkeypatch, saved, machine, expected):
    llm = load(monkeypatch, saved["gpt_oss"], machine, 5, 6, prefetch="none")
    with damaged(llm.loaded.pool), pytest.raises(StoreError, match="fails its checksum"):
        answers(llm)
    assert same(answers(llm), expected["gpt_oss"])


def test_a_summary_tells_the_tiers(monkeypatch, saved, machine):
    llm = load(monkeypatch, saved["gpt_oss"], machine, 6, 8, prefetch="none")
    answer = Answer(llm, llm.sequence([8, 9], max_tokens=4, ignore_eos=True))
    answer.stream()
    told = re.search(
        r"(\d+) % of experts on the accelerator, (\d+) % in RAM, [\d.]+ KiB read, \d+\.\d s waited for the disk \(modelled\)",
        answer.summary(),
    )
    assert told is not None
    assert 0 < int(told[1]) + int(told[2]) < 100
    assert (
        sum(llm.stats()["tiers"].values())
        == llm.stats()["total"]["resident"]
        + sum(llm.stats()["disk"][name] for name in ("hits", "misses"))
        + llm.stats()["total"]["prefetched"]
    )


def test_what_is_free_is_the_budget_and_the_simulated_memory_is_beside_it(monkeypatch, saved, machine):
    monkeypatch.setattr("dali.loading.budget.available_ram", lambda: HEADROOM)  # not a byte for the model
    notes: list[str] = []
    llm = dali.load(
        saved["gpt_oss"], quant="w8", device=f"sim:{machine}", prefetch="none", notify=notes.append
    )
    assert isinstance(llm.loaded.pool, DiskPool)
    assert any(
        re.search(r"RAM has room for all 18 experts, read from .*w8.safetensors", note) for note in notes
    )
    assert llm.generate([5, 6, 7], max_tokens=3, ignore_eos=True).tokens


def test_a_budget_that_is_too_small_is_refused_with_the_one_to_give(saved, machine):
    with pytest.raises(DaliError, match=r"even with its experts on disk; ram allows 10.0 MiB") as error:
        dali.load(saved["gpt_oss"], ram="10MiB", quant="w8", device=f"sim:{machine}")
    told = re.search(r"Give ram (\w+) or more", str(error.value))
    assert told is not None
    assert parse_size(told[1]) > parse_size("10MiB")


def test_lossy_parts_and_profiles_without_a_disk_are_refused(saved, machine, tmp_path):
    with pytest.raises(UsageError, match=r"RAM has no room for all experts of .*, which lossy needs there"):
        dali.load(saved["gpt_oss"], ram="10MiB", device=f"sim:{machine}", policy="hobbit", lossy=True)
    figures = json.loads(Path(machine).read_text())
    figures["figures"] = {name: told for name, told in figures["figures"].items() if "disk" not in name}
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(figures))
    with pytest.raises(UsageError, match=r"does not say how fast its disk is"):
        dali.load(saved["gpt_oss"], ram="10MiB", device=f"sim:{bare}")
