""" "cuda" as a stand-in for a GPU's driver, with torch's part on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake import COMPILER, FakeDriver, FakeGpu, shimmed

from dali.kernels import native


@pytest.fixture(scope="module", autouse=True)
def poisoned() -> Iterator[None]:
    """Keys, values and logits on a GPU are torch's memory: until they are written they are NaN, as the stand-in's own memory is,
    and not what the heap happens to hold."""
    if not torch.cuda.is_available():  # where torch would warn of libraries that add in no fixed order
        torch.use_deterministic_algorithms(True, warn_only=True)  # it then fills what it hands out
        assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> Path:
    """Where the GPU's kernels are kept once they are compiled for the CPU."""
    if COMPILER is None:
        pytest.skip("there is no g++")
    if not native.enabled() or native.variant() == "portable":
        pytest.skip("needs fused multiply-adds")
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def stand_in(kernels) -> FakeDriver:
    return FakeDriver(kernels)


@pytest.fixture
def driver(stand_in, kernels, monkeypatch) -> FakeDriver:
    """What "cuda" is for the test."""
    monkeypatch.setenv("DALI_CACHE_DIR", str(kernels / "cache"))
    stand_in.reset(0)

    def cubin(name: str, macros: dict[str, int], sm: int, kept: Path) -> bytes:
        return str(shimmed.build_macros(macros, kernels)).encode()

    monkeypatch.setattr("dali.offload.build.Gpu", lambda device: FakeGpu(device, stand_in))
    monkeypatch.setattr("dali.offload.gpu.cubin", cubin)
    for temporaries in ("TEMPORARIES", "LOGITS"):
        monkeypatch.setattr(f"dali.offload.gpu.{temporaries}", 0)
    return stand_in
