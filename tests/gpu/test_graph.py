"""Graphs of a queue's work (src/native/gpu/graph.h), on a stand-in for the driver."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from fake import COMPILER, FakeDriver

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")
NATIVE = Path(__file__).parents[2] / "src" / "native"
BYTES = 4096
UNSUPPORTED = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, operation not permitted when stream is capturing"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graph")


@pytest.fixture(scope="module")
def driver(folder):
    return FakeDriver(folder)


@pytest.fixture(scope="module")
def calls(folder):
    """graph_calls.cpp, compiled."""
    sources = [Path(__file__).with_name("graph_calls.cpp"), *(NATIVE / "gpu").glob("d[er]*.cpp")]
    made = folder / "graph_calls.so"
    command = [COMPILER, "-std=c++17", "-shared", "-fPIC", f"-I{NATIVE}", *sources, "-o", made, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


class Graphs:
    """A graph of two copies: of `first`, on the host, over the device to `third`."""

    def __init__(self, calls: ctypes.CDLL, driver: FakeDriver) -> None:
        for name in ("open_test", "own", "other"):
            getattr(calls, name).restype = ctypes.c_void_p
        for name in ("capture_copies", "launch_graph", "copy", "finish"):
            getattr(calls, name).restype = ctypes.c_char_p
        self._calls = calls
        self._test = ctypes.c_void_p(calls.open_test(str(driver.path).encode()))
        self.first, self.second, self.third = (torch.zeros(BYTES, dtype=torch.uint8) for _ in range(3))
        self.own, self.other = (ctypes.c_void_p(find(self._test)) for find in (calls.own, calls.other))

    def capture(self, trouble: int = 0, in_own: bool = True) -> str:
        """What is said, nothing if all is well."""
        places = [ctypes.c_void_p(one.data_ptr()) for one in (self.first, self.second, self.third)]
        return self._calls.capture_copies(
            self._test, in_own, *places, ctypes.c_size_t(BYTES), trouble
        ).decode()

    def launch(self, stream: ctypes.c_void_p) -> str:
        return self._calls.launch_graph(self._test, stream).decode()

    def copy(self) -> str:
        """Queues a copy that is no part of the graph in its stream."""
        places = [ctypes.c_void_p(one.data_ptr()) for one in (self.first, self.second)]
        return self._calls.copy(self._test, *places, ctypes.c_size_t(BYTES)).decode()

    def finish(self, stream: ctypes.c_void_p) -> None:
        assert self._calls.finish(self._test, stream) == b""

    def close(self) -> None:
        self._calls.close_test(self._test)


@pytest.fixture
def graphs(calls, driver):
    driver.reset(0)
    before = driver.held
    made = Graphs(calls, driver)
    yield made
    made.close()
    assert driver.held == before


@pytest.mark.parametrize("seed", range(3))
def test_what_was_captured_runs_in_its_order_at_each_launch_in_any_stream(driver, graphs, seed):
    driver.reset(seed)
    assert graphs.capture() == ""
    assert driver.calls("cuGraphInstantiateWithFlags") == 1
    for number, stream in enumerate((graphs.own, ctypes.c_void_p(0), graphs.other), start=1):
        graphs.first.fill_(number)
        assert (
            int(graphs.third[0]) == number - 1
        )  # capturing ran nothing, nor did the launch of another number
        assert graphs.launch(stream) == ""
        graphs.finish(stream)
        assert graphs.third.unique().tolist() == [number]
    assert driver.calls("cuGraphLaunch") == 3
    assert driver.races == []


def test_launches_that_nothing_orders_are_races(driver, graphs):
    assert graphs.capture() == ""
    assert graphs.launch(graphs.other) == ""
    assert graphs.copy() == ""
    graphs.finish(graphs.other)
    graphs.finish(graphs.own)
    assert any("touch the same memory in no order" in race for race in driver.races)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (1, "the work to capture is wrong"),
        (2, f"allocate: {UNSUPPORTED}"),
        (3, f"finish_stream: {UNSUPPORTED}"),
    ],
)
def test_after_trouble_within_a_capture_the_stream_works(driver, graphs, trouble, said):
    before = driver.held
    assert graphs.capture(trouble) == said
    assert driver.held == before
    assert graphs.capture() == ""
    graphs.first.fill_(7)
    assert graphs.launch(graphs.own) == ""
    graphs.finish(graphs.own)
    assert graphs.third.unique().tolist() == [7]


def test_the_drivers_own_stream_cannot_be_captured(graphs):
    assert graphs.capture(in_own=False) == f"begin_capture: {UNSUPPORTED}"


CALLS = {
    "begin_capture": "cuStreamBeginCapture_v2",
    "copy_down": "cuMemcpyDtoHAsync_v2",
    "end_capture": "cuStreamEndCapture",
    "make_graph": "cuGraphInstantiateWithFlags",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_leaves_nothing_behind_and_the_next_works(driver, graphs, call):
    before = driver.held
    driver.fail(CALLS[call], 1, 700)
    failed = f"{call}: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered"
    assert graphs.capture() == failed
    assert driver.held == before
    assert graphs.capture() == ""
    driver.fail("cuGraphLaunch", 1, 700)
    assert graphs.launch(graphs.own).startswith("launch_graph: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert graphs.launch(graphs.own) == ""
    graphs.finish(graphs.own)
