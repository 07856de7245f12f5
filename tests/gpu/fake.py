"""A stand-in for the CUDA driver (fake_cuda.cpp), and models' layers over it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels" / "gpu"))
import shimmed

from dali.devices.cuda import Gpu

COMPILER = shimmed.COMPILER


class FakeDriver:
    """The library, and what tests ask of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "libcuda.so"
        command = [
            COMPILER,
            "-O2",
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-shared",
            "-fPIC",
            f"-I{shimmed.SOURCE}",
        ]
        done = subprocess.run(
            [*command, Path(__file__).with_name("fake_cuda.cpp"), "-o", self.path, "-ldl"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self.library: Any = ctypes.CDLL(str(self.path))
        self.library.fake_race.restype = ctypes.c_char_p
        for name in ("fake_used", "fake_copied"):
            getattr(self.library, name).restype = ctypes.c_size_t

    def reset(self, seed: int = 0, eager: bool = False, total: int = 1 << 30) -> None:
        """Forget what was counted and seen; `total`: bytes of the device's memory."""
        self.library.fake_reset(seed, int(eager), ctypes.c_size_t(total))

    def idle(self) -> None:
        """From now on do nothing but count, post what the host waits for, and give zeros; "cubins" are not read."""
        self.library.fake_idle()

    def describe(self, version: int = 13000, sm: int = 89) -> None:
        """From now on be a driver for this CUDA, as it numbers them, and a GPU of this compute capability."""
        self.library.fake_describe(version, sm)

    def elapse(self, milliseconds: float) -> None:
        """From now on this long lies between any two events."""
        self.library.fake_elapse(ctypes.c_float(milliseconds))

    def route(self, ids: torch.Tensor, ahead: torch.Tensor) -> None:
        """ids and ahead, int64 [posts, pairs]: what an idle GPU posts from now on, in turn, over and over."""
        self._routing = ids.contiguous(), ahead.contiguous()  # which the library only points at
        addresses = (ctypes.c_void_p(part.data_ptr()) for part in self._routing)
        self.library.fake_route(*addresses, ctypes.c_size_t(ids.shape[1]), ctypes.c_size_t(len(ids)))

    def fail(self, call: str, nth: int, code: int) -> None:
        """Let the `nth` call of this name from now on fail."""
        self.library.fake_fail(call.encode(), nth, code)

    def calls(self, name: str = "") -> int:
        return int(self.library.fake_calls(name.encode()))

    def copied(self, name: str) -> int:
        return int(self.library.fake_copied(name.encode()))

    @property
    def used(self) -> int:
        """Bytes of device memory that are taken."""
        return int(self.library.fake_used())

    @property
    def held(self) -> int:
        """How many things of the driver's were made and not given back: memory, streams, events, modules, graphs, contexts."""
        return int(self.library.fake_held())

    @property
    def races(self) -> list[str]:
        found = []
        while (race := self.library.fake_race(len(found))) is not None:
            found.append(race.decode())
        return found


class FakeGpu(Gpu):
    """A GPU that `driver` stands in for; torch's part of it is the CPU."""

    def __init__(self, device: str, driver: FakeDriver) -> None:
        self._driver = driver
        super().__init__(device, str(driver.path))

    def _torch_device(self) -> torch.device:
        return torch.device("cpu")

    def queue(self) -> int:
        return 0

    def free_bytes(self) -> int:
        return self.memory()[0]

    def wait(self) -> None:
        self.hand_over()

    def hand_over(self) -> None:
        self._driver.library.cuStreamSynchronize(ctypes.c_void_p(0))


def address(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()
