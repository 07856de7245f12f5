from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dali.devices import COMPUTE, Buffer, SimDevice
from dali.runtime.loans import Loans
from dali.runtime.residency import Residency
from runtime.tiny_runtime import EXPERTS, LAYERS, check_slots

NBYTES, LINK = 64, 2.0  # of a record; seconds of a copy


def stored(layer: int, expert: int) -> torch.Tensor:
    return torch.full((NBYTES,), layer * EXPERTS + expert, dtype=torch.uint8)


def lease(layer: int, experts: Sequence[int]) -> Any:
    return SimpleNamespace(records=[stored(layer, expert) for expert in experts], ready=0.0)


@pytest.fixture
def device() -> SimDevice:
    return SimDevice(2**20)


@pytest.fixture
def make(device: SimDevice) -> Callable[[int, int], Residency]:
    def build(slots: int, capacity: int) -> Residency:
        pool: Any = SimpleNamespace(lease=lease)
        residency = Residency(
            device, Loans(device, pool), LAYERS, NBYTES, slots, LAYERS * capacity, (LINK, LINK)
        )
        for layer in range(LAYERS):
            residency.place(layer, range(capacity))
        device.synchronize()
        return residency

    return build


def compute(device: SimDevice, seconds: float, *reads: Buffer) -> None:
    """Let the accelerator, and the host that waits for it, be busy."""
    device.launch(device.stream(COMPUTE), lambda: None, reads, (), seconds)
    device.synchronize(device.mark(device.stream(COMPUTE)))


def contents(residency: Residency, layer: int, expert: int) -> int:
    """What the expert's slot holds in the end."""
    residency.device.synchronize()
    (value,) = residency.slots(layer, [expert])[0].tensor.unique().tolist()
    return int(value)


def test_residents_are_there_from_the_start(device: SimDevice, make: Callable[..., Residency]) -> None:
    residency = make(2 * LAYERS + 3, 2)
    view = residency.view(1)
    assert (view.resident, view.in_flight, view.slots, view.link_free) == ({0, 1}, {}, 3, 0.0)
    assert contents(residency, 1, 1) == EXPERTS + 1
    assert residency.copies == 2 * LAYERS
    assert device.used == (2 * LAYERS + 3) * NBYTES


def test_an_expert_on_its_way_is_in_flight_for_its_remaining_time(
    device: SimDevice, make: Callable[..., Residency]
) -> None:
    residency = make(2, 0)
    residency.fetch(0, 5)
    residency.fetch(1, 6)
    compute(device, 1.5)
    assert residency.view(0).in_flight == pytest.approx({5: 0.5})
    assert residency.view(1).in_flight == pytest.approx({6: 2.5})
    assert residency.view(2).link_free == pytest.approx(2.5)
    assert (residency.view(0).slots, residency.view(2).slots) == (1, 0)
    compute(device, 1.0)
    assert residency.view(0).in_flight == {5: 0.0}  # landed, but to stay only if the cache takes it


def test_a_swapped_in_expert_is_a_resident_once_its_copy_has_landed(
    device: SimDevice, make: Callable[..., Residency]
) -> None:
    residency = make(2 * LAYERS, 2)
    residency.swap(0, evict=1, load=7)
    view = residency.view(0)
    assert (view.resident, view.in_flight) == ({0}, {7: LINK})
    assert (residency.residents(0), residency.unsettled(0)) == ({0, 7}, {7})
    compute(device, LINK)
    view = residency.view(0)
    assert (view.resident, view.in_flight, residency.unsettled(0)) == ({0, 7}, {}, set())
    assert contents(residency, 0, 7) == 7


def test_a_swap_with_scratch_exchanges_roles_and_copies_nothing(make: Callable[..., Residency]) -> None:
    residency = make(2 * LAYERS + 1, 2)
    residency.fetch(0, 7)
    copies = residency.copies
    residency.swap(0, evict=0, load=7)
    assert residency.copies == copies
    assert (residency.residents(0), residency.scratch(0), residency.free_slots()) == ({1, 7}, [], 1)
    assert contents(residency, 0, 7) == 7


def test_a_released_slot_is_filled_again_after_the_launch_that_reads_it(
    device: SimDevice, make: Callable[..., Residency]
) -> None:
    residency = make(1, 0)
    seen = []
    for expert in (3, 4):
        residency.fetch(0, expert)
        (slot,) = residency.slots(0, [expert])
        note = lambda slot=slot: seen.append(int(slot.tensor[0]))  # noqa: E731
        device.launch(device.stream(COMPUTE), note, [slot], [], 1.0)
        residency.release(0, expert)
    device.synchronize()
    assert seen == [3, 4]
    assert device.now() == pytest.approx(2 * LINK + 2 * 1.0)


@pytest.mark.parametrize("point", ["copy", "keep"])
@pytest.mark.parametrize("fetched", [False, True])
def test_a_swap_cut_short_costs_no_resident(
    make: Callable[..., Residency], monkeypatch: pytest.MonkeyPatch, point: str, fetched: bool
) -> None:
    slots = 2 * LAYERS + 1
    residency = make(slots, 2)
    if fetched:
        residency.fetch(0, 7)
    keep = residency._keep

    def interrupted(*arguments: object) -> None:
        if point == "keep":
            keep(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(residency, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        residency.swap(0, evict=1, load=7)
    monkeypatch.undo()
    residency.reset()
    check_slots(residency, slots, 2)
    assert residency.unsettled(0) == residency.residents(0) == {0, 1}
    assert [contents(residency, layer, 1) for layer in range(LAYERS)] == [
        1 + EXPERTS * n for n in range(LAYERS)
    ]


def test_another_layer_can_give_up_a_slot(make: Callable[..., Residency]) -> None:
    residency = make(2 * LAYERS + 1, 2)
    residency.fetch(0, 7)
    residency.swap(0, evict=1, load=7, donor=2)
    assert (residency.residents(0), residency.residents(2)) == ({0, 1, 7}, {0})
    assert (residency.scratch(0), residency.free_slots()) == ([], 1)
    assert contents(residency, 0, 7) == 7


def test_a_swap_across_layers_cut_short_costs_no_resident(
    make: Callable[..., Residency], monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = make(2 * LAYERS + 1, 2)
    residency.fetch(0, 7)
    keep = residency._keep

    def interrupted(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(residency, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        residency.swap(0, evict=1, load=7, donor=2)
    monkeypatch.undo()
    residency.reset()
    check_slots(residency, 2 * LAYERS + 1, 2)
    assert (residency.residents(0), residency.residents(2)) == ({0, 1}, {0, 1})
    residency.fetch(0, 7)
    residency.swap(0, evict=1, load=7, donor=2)
    residency.reset()
    assert (residency.residents(0), residency.residents(2)) == ({0, 1, 7}, {0})
    assert contents(residency, 0, 7) == 7


def test_reset_forgets_what_waited_and_fills_every_slot_anew(
    device: SimDevice, make: Callable[..., Residency]
) -> None:
    residency = make(2 * LAYERS + 2, 2)
    residency.swap(3, evict=0, load=5)
    residency.fetch(1, 6)
    device.synchronize()
    assert residency._memory is not None
    for slot in residency._memory.parts:
        slot.tensor.zero_()
    residency.reset()
    assert (residency.scratch(1), residency.free_slots(), residency.residents(3)) == ([], 2, {1, 5})
    assert contents(residency, 3, 5) == 3 * EXPERTS + 5
    assert contents(residency, 2, 1) == 2 * EXPERTS + 1


def test_without_slots_there_is_nothing(device: SimDevice, make: Callable[..., Residency]) -> None:
    residency = make(0, 0)
    residency.reset()
    view = residency.view(0)
    assert (view.resident, view.in_flight, view.slots, device.used) == (set(), {}, 0, 0)
    residency.close()


def test_close_gives_the_memory_back(device: SimDevice, make: Callable[..., Residency]) -> None:
    make(3, 0).close()
    assert device.used == 0
