"""Models whose experts RAM cannot hold: the same bits as with all of them in RAM, and budgets that are told what they lack."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from gguf import GGMLQuantizationType as Type

import dali
from dali.cli.chat.answer import Answer
from dali.errors import DaliError, StoreError
from dali.hardware import own
from dali.kernels import native
from dali.loading import on_disk
from dali.loading.room import HEADROOM, SPREAD
from dali.store.disk_pool import DiskPool
from dali.units import parse_size
from decoded import decoded
from families import random_model, save_model
from gguf_models import encode_as, gguf_model, save_gguf
from measured import MACHINE, measured
from on_disk import damaged, load_on_disk

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(native.VARIABLE, raising=False)


@pytest.fixture
def saved(tmp_path):
    return save_model(random_model("olmoe"), tmp_path / "model")


# A shared expert, biases and MXFP4's ways, attention to latents, a dense layer; and one whose layers transformers computes.
@pytest.mark.parametrize(
    ("family", "slots"),
    [("qwen2_moe", 3), ("gpt_oss", 3), ("deepseek_v2", 3), ("phimoe", 3), ("gpt_oss", 7), ("qwen2_moe", 100)],
)
def test_not_a_bit_changes(tmp_path, monkeypatch, family, slots):
    path = save_model(random_model(family), tmp_path / "model")
    inside = dali.load(path, quant="w8")
    wanted = decoded(inside)
    llm = load_on_disk(monkeypatch, path, slots, quant="w8")
    assert (llm.engine.decoder is None) == (inside.engine.decoder is None)
    for _ in range(2):
        assert all(map(torch.equal, wanted, decoded(llm)))
    assert llm.loaded.pool.slots == min(slots, llm.loaded.pool.layers * llm.loaded.pool.experts)
    disk, lookups = llm.telemetry.disk, inside.telemetry.total().lookups
    assert disk is not None
    assert sum(disk.hits) + sum(disk.misses) == 2 * lookups == llm.telemetry.total().lookups
    if slots == 100:  # room for all: each is read once
        assert disk.reads <= llm.loaded.pool.layers * llm.loaded.pool.experts


def test_floats_are_computed_alike_too(tmp_path, monkeypatch):
    path = save_model(random_model("olmoe"), tmp_path / "model")
    wanted = decoded(dali.load(path, quant="f32"))
    assert all(map(torch.equal, wanted, decoded(load_on_disk(monkeypatch, path, 3, quant="f32"))))


def test_a_step_that_fails_leaves_a_model_that_answers(saved, monkeypatch):
    wanted = (
        dali.load(saved, quant="w8").generate([5, 6, 7], max_tokens=12, temperature=0, ignore_eos=True).tokens
    )
    llm = load_on_disk(monkeypatch, saved, 3, quant="w8")
    pool = llm.loaded.pool
    assert isinstance(pool, DiskPool)
    stream = llm.stream([5, 6, 7], max_tokens=12, temperature=0, ignore_eos=True)
    next(stream)
    with damaged(pool), pytest.raises(StoreError, match="fails its checksum"):
        list(stream)
    assert llm.generate([5, 6, 7], max_tokens=12, temperature=0, ignore_eos=True).tokens == wanted


@pytest.mark.parametrize(("prefetch", "ahead"), [("none", False), ("next_gate", True), (None, True)])
def test_looking_ahead_changes_no_bit_and_can_be_turned_off(saved, monkeypatch, prefetch, ahead):
    wanted = dali.load(saved, quant="w8").generate([5, 6, 7], max_tokens=80, temperature=0, ignore_eos=True)
    llm = load_on_disk(monkeypatch, saved, 7, quant="w8", prefetch=prefetch, ram="1TiB")
    sequence = llm.sequence([5, 6, 7], max_tokens=80, temperature=0, ignore_eos=True)
    llm.engine.add(sequence)
    looked = []
    while llm.engine.step():
        looked.append(llm.loaded.pool.looks_ahead)
    assert sequence.generated == wanted.tokens
    assert any(looked) == ahead


def test_what_is_said_of_reading_ahead_needs_experts_on_disk(saved):
    with pytest.raises(DaliError, match=r"prefetch none is about experts on disk, and ram has room for all"):
        dali.load(saved, quant="w8", prefetch="none", ram="1TiB")


def test_stats_tell_of_the_disk(saved, monkeypatch):
    llm = load_on_disk(monkeypatch, saved, 6, quant="w8")
    assert llm.stats()["disk"]["reads"] == 0  # what was probed is no step
    llm.generate([5, 6, 7], max_tokens=12, temperature=0, ignore_eos=True)
    disk = llm.stats()["disk"]
    assert disk["hits"] + disk["misses"] == llm.telemetry.total().lookups
    assert disk["read_bytes"] == disk["wanted_bytes"] == disk["reads"] * llm.layout.record_bytes
    assert disk["hit_rate"] == disk["hits"] / (disk["hits"] + disk["misses"])
    assert dali.load(saved, quant="w8").stats()["disk"] is None


def test_an_answer_s_summary_tells_of_the_disk(saved, monkeypatch):
    llm = load_on_disk(monkeypatch, saved, 6, quant="w8")
    llm.generate([5, 6, 7], max_tokens=3, ignore_eos=True)  # another's
    answer = Answer(llm, llm.sequence([8, 9], max_tokens=4, ignore_eos=True))
    answer.stream()
    assert re.search(
        r"\d+ % of experts in RAM, [\d.]+ KiB read, \d+\.\d s waited for the disk", answer.summary()
    )
    assert "reads at a time, read ahead" in answer.summary(long=True)


def test_a_budget_below_a_token_s_experts_is_refused_with_the_one_to_give(saved):
    with pytest.raises(
        DaliError, match=r"needs .* even with its experts on disk; ram allows 10.0 MiB"
    ) as error:
        dali.load(saved, ram="10MiB", quant="w8")
    told = re.search(r"Give ram (\w+) or more", str(error.value))
    assert told is not None
    assert parse_size(told[1]) > parse_size("10MiB")
    llm = dali.load(saved, ram=told[1], quant="w8")
    assert llm.generate([5, 6, 7], max_tokens=3, ignore_eos=True).tokens


def test_the_budget_to_give_has_room_for_what_plain_reads_have_in_the_page_cache(saved, monkeypatch):
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    named = []
    for bandwidth in (2e9, 6e9):  # past it, or through it
        own.write(measured(plain_bandwidth=bandwidth, plain_queue_depth=1024.0))
        with pytest.raises(DaliError, match=r"ram allows 10.0 MiB") as error:
            dali.load(saved, ram="10MiB", quant="w8")
        told = re.search(r"Give ram (\w+) or more", str(error.value))
        assert told is not None
        named.append(parse_size(told[1]))
    assert named[1] - named[0] > 1024 * 12288 - SPREAD / 4  # records of 12 KiB


def test_what_is_free_is_the_budget_where_none_is_given(saved, monkeypatch):
    monkeypatch.setattr("dali.loading.budget.available_ram", lambda: HEADROOM)  # not a byte for the model
    notes: list[str] = []
    llm = dali.load(saved, quant="w8", notify=notes.append)
    assert isinstance(llm.loaded.pool, DiskPool)
    assert re.search(r"RAM has room for all 24 experts, read from .*w8.safetensors", notes[-1])
    assert llm.generate([5, 6, 7], max_tokens=3, ignore_eos=True).tokens
    monkeypatch.setattr(on_disk, "available_ram", lambda: 0)
    with pytest.raises(
        DaliError, match=r"even with its experts on disk; .* can be had\.\nClose other programs"
    ):
        dali.load(saved, quant="w8")


def test_without_compiled_kernels_all_experts_have_to_be_in_ram(saved, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "torch")
    monkeypatch.setattr("dali.loading.budget.available_ram", lambda: HEADROOM)
    with pytest.raises(DaliError, match="are free"):
        dali.load(saved, quant="w8")


@pytest.mark.parametrize("slots", [3, 11])
def test_a_gguf_file_s_experts_keep_their_types_on_disk(tmp_path, monkeypatch, slots):
    """Of several types, in layers that differ: Q8_0, Q4_0 and F16, whose values the store keeps."""
    kinds = {"blk.0.ffn_down_exps.weight": Type.F16, "blk.1.ffn_up_exps.weight": Type.Q4_0}

    def encode(name: str, tensor: torch.Tensor):
        return encode_as(kinds.get(name, Type.Q8_0))(name, tensor)

    path = save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf", encode)
    wanted = decoded(dali.load(path))
    notes: list[str] = []
    for _ in range(2):
        llm = load_on_disk(monkeypatch, path, slots, notify=notes.append)
        assert len({layout.record_bytes for layout in llm.loaded.layouts}) > 1
        assert all(map(torch.equal, wanted, decoded(llm)))
    packed = [note for note in notes if "are packed into" in note]
    assert len(packed) == 1
    assert re.search(r"packed into .*gguf.safetensors, once, which takes \d", packed[0])


def test_what_a_conversion_loses_is_said_each_time(tmp_path, monkeypatch):
    path = save_gguf(gguf_model("qwen3_moe"), tmp_path / "m.gguf", encode_as(Type.Q8_0))
    lost = dali.load(path, quant="w4").loaded.converted
    assert lost
    for _ in range(2):
        assert load_on_disk(monkeypatch, path, 5, quant="w4").loaded.converted == lost


def test_a_disk_that_was_measured_is_read_as_deep_as_it_is_worth(saved, monkeypatch):
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    own.write(measured(disk_queue_depth=7.0))
    notes: list[str] = []
    llm = load_on_disk(monkeypatch, saved, 6, quant="w8", notify=notes.append)
    assert isinstance(llm.loaded.pool, DiskPool)
    assert llm.loaded.pool.depth == 7
    assert [note for note in notes if "7 reads at once, by this machine, measured on 2026-11-30" in note]


def test_a_disk_that_plain_reading_was_measured_to_be_faster_on_is_read_plainly(saved, monkeypatch):
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    own.write(measured(plain_bandwidth=4.5e9, plain_queue_depth=3.0))
    notes: list[str] = []
    wanted = decoded(dali.load(saved, quant="w8"))
    llm = load_on_disk(monkeypatch, saved, 6, quant="w8", notify=notes.append)
    assert all(map(torch.equal, wanted, decoded(llm)))
    assert isinstance(llm.loaded.pool, DiskPool)
    assert (llm.loaded.pool.depth, llm.loaded.pool.direct) == (3, False)
    told = (
        "3 reads at once through the page cache, 1.5 times as fast as past it, by this machine, measured on"
    )
    assert any(told in note for note in notes)
    assert not any("whose file system" in note for note in notes)


def test_memory_for_experts_is_provided_until_somebody_asks(saved, monkeypatch):
    asked: list[Callable[[], bool]] = []
    monkeypatch.setattr(DiskPool, "prepare_memory", lambda pool, until: asked.append(until))
    llm = load_on_disk(monkeypatch, saved, 6, quant="w8")
    (until,) = asked
    assert not until()
    seen: list[bool] = []
    forward = llm.engine._forward
    monkeypatch.setattr(llm.engine, "_forward", lambda *given: seen.append(until()) or forward(*given))
    llm.generate([5, 6, 7], max_tokens=2, temperature=0, ignore_eos=True)
    assert seen
    assert all(seen)
