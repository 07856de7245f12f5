"""A pool whose disk fails, stalls or gives less than was asked for: nothing wrong is ever leased, and what can be mended is."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_disk_pool import DESCRIBED, EXPERTS, LAYERS, assert_leased

from dali.errors import StoreError
from dali.kernels import native
from dali.store.disk_pool import DiskPool
from dali.store.packed.builder import ensure_store
from tiny_stores import RandomExperts, silent

HERE = Path(__file__).parent
SHAKEN = "DALI_SHAKEN_DISK"
MENDED = ["short", "odd", "interrupted", "refused", "stalled"]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not native.AVAILABLE or shutil.which("cc") is None,
    reason="a preloaded library and the compiled kernels are needed",
)


def test_in_a_process_of_its_own(tmp_path):
    """Where the library is preloaded, which it has to be before Python begins."""
    if SHAKEN in os.environ:
        pytest.skip("this is that process")
    library = tmp_path / "shaken_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", HERE / "shaken_disk.c", "-o", library, "-ldl"]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), SHAKEN: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def disk():
    if SHAKEN not in os.environ:
        pytest.skip("runs in a process of its own")
    return ctypes.CDLL(None)


@pytest.fixture(params=["by threads", "by the kernel"])
def shake(request, disk):
    disk.refuse_submissions(request.param == "by threads")
    yield lambda how, reads=10**6: disk.shake(how.encode(), reads)
    disk.shake(b"", 0)


@pytest.fixture
def path(tmp_path):
    ensure_store(tmp_path / "shaken", DESCRIBED, RandomExperts(), silent)
    return tmp_path / "shaken"


@pytest.mark.parametrize("how", MENDED)
def test_what_can_be_mended_is(path, shake, how):
    pool = DiskPool(path, 3, 3, depth=2)
    shake(how, 1 if how == "stalled" else 30)
    for layer in range(LAYERS):
        assert_leased(pool, layer, [0, 4, 2])


def test_a_file_system_without_direct_reads(path, shake):
    assert DiskPool(path, 3, 3, depth=2).direct
    shake("indirect")
    pool = DiskPool(path, 3, 3, depth=2)
    assert not pool.direct
    assert pool.cached_bytes == 2 * pool.slot_bytes
    assert not DiskPool(path, 3, 3, depth=2, plain=True).has_both_ways
    for layer in range(LAYERS):
        assert_leased(pool, layer, [1, 3])


def test_an_error_that_passes_is_tried_again(path, shake):
    pool = DiskPool(path, 3, 3, depth=1)
    shake("error", 2)
    assert_leased(pool, 0, [1])


def test_an_error_that_stays_is_told_and_harms_nothing(path, shake):
    pool = DiskPool(path, 3, 3, depth=2)
    assert_leased(pool, 0, [2])
    shake("error")
    with pytest.raises(
        StoreError, match=r"expert 1 of MoE layer 0: it cannot be read \(Input/output error\)"
    ):
        pool.lease(0, [1, 2])
    assert_leased(pool, 0, [2])  # is in memory
    shake("", 0)
    assert_leased(pool, 0, [1, 2, 3])


def test_bits_that_flip_on_the_way_are_read_again(path, shake):
    pool = DiskPool(path, EXPERTS, EXPERTS, depth=1)
    shake("wrong", 1)
    assert_leased(pool, 2, [3])
    shake("wrong")
    with pytest.raises(StoreError, match="expert 4 of MoE layer 2: it fails its checksum"):
        pool.lease(2, [4])


@pytest.mark.parametrize("how", ["", "slow to begin"])
def test_what_the_kernel_is_no_faster_in_is_left_to_threads(path, disk, how):
    disk.refuse_submissions(False)
    pool = DiskPool(path, 1, 1, depth=1)
    disk.shake(how.encode(), 10**6)
    for expert in [0, 1] * 8:
        assert_leased(pool, 0, [expert])
    before = disk.reads_by_pread()
    assert_leased(pool, 0, [0])
    disk.shake(b"", 0)
    assert (disk.reads_by_pread() > before) == bool(how)


def test_ctrl_c_ends_the_wait_for_a_disk_that_stalls(path, shake):
    pool = DiskPool(path, 2, 2, depth=1)
    shake("stalled", 1)
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        pool.lease(0, [0, 1])
    took = time.perf_counter() - began
    assert_leased(pool, 0, [0, 1])
    assert took < time.perf_counter() - began  # the other read ended later
