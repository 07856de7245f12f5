"""Where a model's experts would be: by the same limits as loading."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import dali
from dali.doctor import checkpoint, plan
from dali.doctor.outline import read_outline
from dali.doctor.plan import Free, make_plan
from dali.errors import DaliError
from dali.hardware import own
from dali.hardware.cost import DiskCosts, reading
from dali.hardware.profile import load
from dali.kernels import native
from dali.loading import on_disk
from dali.loading.room import HEADROOM
from dali.loading.safetensors import SafetensorsModel
from dali.offload import ram as offload_ram
from dali.options import LoadOptions
from dali.store.disk_pool import DiskPool
from families import random_model, save_model
from measured import MACHINE, measured


@pytest.fixture
def sizes(dali_tiny):
    return checkpoint.sizes_of(read_outline(dali_tiny))


@pytest.mark.parametrize("short", [0, 1])
def test_the_format_is_the_one_that_loading_chooses(sizes, dali_tiny, short):
    source = SafetensorsModel(dali_tiny)
    ram = (
        sum(each.record * 20 for each in sizes.layouts("w8"))
        + sizes.dense_bytes("bfloat16", False)
        + HEADROOM
        - short
    )
    options = LoadOptions(ram=ram)
    chosen = source.layouts("auto", source.dtype("auto", True), ram)
    found = make_plan(sizes, options, Free(0), compiled=True)
    assert found.format == chosen[0].format_name == ("w4" if short else "w8")


def test_a_shorter_context_is_kept_before_experts_go_to_disk(sizes):
    """A quarter of what is left goes to keys and values where nobody asks for more, as dali.offload.ram has it."""
    large, ram = replace(sizes, context=2**20), 700 * 2**20
    found = make_plan(large, LoadOptions(ram=ram, quant="f32"), Free(0), compiled=True)
    assert found.where == "disk"
    assert found.context < 2**20
    rest = ram - plan.IMPORTED - plan.LOADED - found.dense
    assert found.states <= rest / 4
    longer = make_plan(
        large, LoadOptions(ram=ram, quant="f32", ctx_size=2 * found.context), Free(0), compiled=True
    )
    assert longer.context == 2 * found.context
    with pytest.raises(DaliError, match="keys and values of 1048576 tokens"):
        make_plan(large, LoadOptions(ram=ram, quant="f32", ctx_size=2**20), Free(0), compiled=True)


@pytest.mark.parametrize("device", ["cpu", "sim:laptop-8gb"])
@pytest.mark.parametrize("ram", [2**26, 3 * 2**28])
@pytest.mark.parametrize("quant", ["w4", "f32"])
@pytest.mark.parametrize("window", [None, 128])
def test_the_budget_that_a_refusal_names_is_taken(sizes, window, quant, ram, device):
    """With the whole context that was asked for, whose keys and values are what is large here."""
    kept = tuple(
        each._replace(heads=8, key=256, value=256, window=window if i % 2 else None)
        for i, each in enumerate(sizes.kept)
    )
    large = replace(sizes, context=2**14, kept=kept)
    accelerator = None if device == "cpu" else plan.Device(device, load("laptop-8gb"), simulated=True)

    def planned(ram):
        options = LoadOptions(ram=ram, quant=quant, ctx_size=2**14, device=device)
        return make_plan(large, options, Free(2**36), True, accelerator)

    with pytest.raises(DaliError) as refused:
        planned(ram)
    enough = re.search(r"ive ram (\d+MiB) or more", refused.value.fix)
    assert enough is not None
    assert planned(enough[1]).context == 2**14


def test_it_has_room_for_what_plain_reads_have_in_the_page_cache(sizes):
    large = replace(sizes, experts=2**17)  # more than any RAM has room for
    free = Free(2**30, reads=DiskCosts(3e9, 1e-4, 1024, plain=True))

    def planned(ram):
        return make_plan(large, LoadOptions(ram=ram, quant="w4"), free, compiled=True)

    with pytest.raises(DaliError) as refused:
        planned(2**26)
    enough = re.search(r"ive ram (\d+MiB) or more", refused.value.fix)
    assert enough is not None
    assert planned(enough[1]).where == "disk"


@pytest.mark.parametrize("kind", ["q8", "model"])
def test_the_type_of_keys_and_values_is_the_one_that_loading_keeps(sizes, kind):
    found = make_plan(sizes, LoadOptions(cache_type=kind), Free(2**34), compiled=True)
    assert found.in_q8 == (kind == "q8")


def test_reading_ahead_needs_experts_on_disk(sizes):
    with pytest.raises(DaliError, match="prefetch none is about experts on disk"):
        make_plan(sizes, LoadOptions(prefetch="none", ram="1TiB"), Free(2**34), compiled=True)


def test_a_disk_that_is_too_small_is_refused(sizes):
    with pytest.raises(DaliError, match="on the disk of dali's cache"):
        make_plan(sizes, LoadOptions(), Free(2**34, 2**20), compiled=True)


def test_without_compiled_kernels_nothing_is_read_from_disk(sizes):
    with pytest.raises(DaliError, match="of memory with w4 experts"):
        make_plan(sizes, LoadOptions(ram=2**29), Free(0), compiled=False)


@pytest.mark.skipif(not native.AVAILABLE, reason="the kernels were not compiled")
@pytest.mark.parametrize("plain", [False, True])
def test_as_many_experts_have_room_in_ram_as_loading_gives_by_either_way_of_reading(
    tmp_path, monkeypatch, plain
):
    """Beside a process of a size that is said: what is being read through the page cache counts for both."""
    monkeypatch.setenv("DALI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("dali.hardware.own.this_machine", lambda folder: MACHINE)
    profile = measured(plain_bandwidth=6e9 if plain else 2e9, plain_queue_depth=5.0)
    own.write(profile)
    path = save_model(random_model("olmoe"), tmp_path / "model")
    sizes, free = checkpoint.sizes_of(read_outline(path)), Free(0, reads=reading(profile))
    options: dict[str, Any] = {"quant": "w8", "ctx_size": 64, "cache_ram": 0}

    def found(ram: int) -> int:
        return make_plan(sizes, LoadOptions(ram=ram, **options), free, compiled=True).slots

    ram = least_of(found) + 6 * 12288  # room for as many experts more
    dense = make_plan(sizes, LoadOptions(ram=ram, **options), free, compiled=True).dense
    monkeypatch.setattr(on_disk, "own_memory", lambda: plan.IMPORTED)
    monkeypatch.setattr(offload_ram, "own_memory", lambda: plan.IMPORTED + plan.LOADED + dense)
    monkeypatch.setattr(DiskPool, "held", 0)  # of that process
    pool = dali.load(path, ram=ram, **options).loaded.pool
    assert isinstance(pool, DiskPool)
    if not (plain or pool.direct):
        pytest.skip("the file system here reads through the page cache alone")
    assert (pool.plain, pool.slot_bytes) == (plain, 12288)
    assert pool.slots == found(ram) < 24
    assert pool.cached_bytes == (5 * 12288 if plain else 0)


def least_of(found: Callable[[int], int]) -> int:
    """The least budget that is not refused."""
    low, high = 2**28, 2**30
    while high - low > 2**12:
        ram = (low + high) // 2
        try:
            found(ram)
        except DaliError:
            low = ram
        else:
            high = ram
    return high
