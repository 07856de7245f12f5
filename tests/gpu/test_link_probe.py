"""The GPU's part of `dali bench hw`, on a stand-in for the driver: every figure is there, and nothing of the GPU is kept."""

from __future__ import annotations

from itertools import count

import pytest
from fake import COMPILER, FakeDriver, FakeGpu

from dali.compiled import library
from dali.errors import DaliError
from dali.hardware.profile import ACCELERATOR, UNITS
from dali.kernels import native
from dali.probe import link, whole

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no g++"),
    pytest.mark.skipif(not native.enabled(), reason="needs the compiled kernels"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return FakeDriver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def idle(driver, monkeypatch):
    """A GPU that does nothing, and experts that are small."""
    driver.reset(0, total=1 << 34)
    driver.idle()
    monkeypatch.setattr(link, "SHAPES", ((256, 32), (256, 64)))
    monkeypatch.setattr(link, "ROOM", 2**20)
    both = link.OneLayer.both
    monkeypatch.setattr(link.OneLayer, "both", lambda self, fetches: (both(self, fetches)[0], 1e-3))
    return FakeGpu("cuda", driver)


def clock():
    times = count()
    return lambda: next(times) / 1000


def loader(gpu):
    return lambda name, macros: library.GpuModule(gpu.native, b"none is read")


def test_every_figure_and_table_of_a_gpu_is_measured_and_all_is_given_back(idle, driver):
    held = driver.held
    found = link.measure(idle, loader(idle), clock(), "a test", formats=("w4", "q6k"))
    assert set(found.figures) == {*ACCELERATOR, "link_contended"} == set(whole.HOW)
    assert set(found.figures) <= set(UNITS)
    assert found.figures["gpu_memory"].value == 1 << 34
    assert all(reading.value > 0 for reading in found.figures.values())
    tables = [(table.device, table.format, table.beside) for table in found.tables]
    assert tables == [
        ("cpu", "w4", "copies"),
        ("gpu", "w4", ""),
        ("gpu", "w4", ""),
        ("gpu", "q6k", ""),
        ("gpu", "q6k", ""),
    ]
    assert driver.copied("cuMemcpyHtoDAsync_v2") > 0
    assert driver.held == held


def test_a_gpu_that_fails_is_a_note_and_the_rest_is_kept(idle, driver, monkeypatch):
    monkeypatch.setattr("dali.probe.whole.check_gpu", lambda device: None)
    monkeypatch.setattr("dali.devices.cuda.Gpu", lambda device: idle)
    monkeypatch.setattr("dali.offload.gpu.cubin", lambda *arguments: b"none is read")
    driver.fail("cuMemAlloc_v2", 1, 2)
    draft = whole.Draft("a test")
    whole._gpu(draft, clock())
    assert draft.figures == {}
    assert len(draft.notes) == 1
    assert draft.notes[0].startswith("The GPU was not measured. cuda (")


def test_a_gpus_figures_come_with_their_source(idle, monkeypatch):
    monkeypatch.setattr("dali.probe.whole.check_gpu", lambda device: None)
    monkeypatch.setattr("dali.devices.cuda.Gpu", lambda device: idle)
    monkeypatch.setattr("dali.offload.gpu.cubin", lambda *arguments: b"none is read")
    draft = whole.Draft("a test")
    whole._gpu(draft, clock())
    assert set(ACCELERATOR) <= set(draft.figures)
    assert all("cuda (" in figure.source for figure in draft.figures.values())


def test_a_driver_that_cannot_be_used_is_a_note(monkeypatch):
    def refuse(device):
        raise DaliError("Device 'cuda' cannot be used: too old.", "Update.")

    monkeypatch.setattr("dali.probe.whole.check_gpu", lambda device: None)
    monkeypatch.setattr("dali.devices.cuda.Gpu", refuse)
    draft = whole.Draft("a test")
    whole._gpu(draft, clock())
    assert draft.notes == ["The GPU was not measured. Device 'cuda' cannot be used: too old."]
