"""Compiling the GPU's kernels with NVRTC, which torch's CUDA wheels bring along: no toolkit is needed, at build time or later.

What a layout fixes (formats, activation) is fixed by macros, so that each kernel is compiled once for each of a model's layouts
and for the architecture of the GPU at hand. It takes some seconds in all, and the outcome is kept.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import xxhash

from dali.errors import DaliError
from dali.kernels.gpu import grids

SOURCE = Path(__file__).parent / "source"
BUILTINS = "nvrtc-builtins64_*.dll" if os.name == "nt" else "libnvrtc-builtins.so.*"
# Results must not depend on how a compiler fuses or reorders floating-point operations.
ROUNDING = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
OPTIONS = (
    "--std=c++17",
    "--device-as-default-execution-space",
    *ROUNDING,
)  # lambdas of many types say no space


class Compiler:
    """One libnvrtc."""

    def __init__(self, library: str) -> None:
        # Some libnvrtc look for this part of theirs by its bare name alone, and find it only where it is loaded already.
        for part in Path(library).parent.glob(BUILTINS) if os.path.isabs(library) else ():
            ctypes.CDLL(str(part))
        self._nvrtc = ctypes.CDLL(library)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "")
        self.version = f"{major.value}.{minor.value}"

    def compile(
        self, name: str, macros: Mapping[str, int], sm: int, options: tuple[str, ...] = ()
    ) -> tuple[bytes, str]:
        """`source/name.cuh` for compute capability `sm`, as in 89 -> (cubin, what the compiler said). DaliError if it refuses."""
        nvrtc, program = self._nvrtc, ctypes.c_void_p()
        headers = sources()
        bodies = (ctypes.c_char_p * len(headers))(*headers.values())
        names = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers))
        main = f'#include "{name}.cuh"\n'.encode()
        self._check(
            nvrtc.nvrtcCreateProgram(ctypes.byref(program), main, b"dali.cu", len(headers), bodies, names), ""
        )
        try:
            given = [
                *OPTIONS,
                *options,
                f"--gpu-architecture=sm_{sm}",
                *(f"-D{key}={value}" for key, value in macros.items()),
            ]
            array = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
            status = nvrtc.nvrtcCompileProgram(program, len(given), array)
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            self._check(status, log)
            return self._read(program, "CUBIN"), log
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), "")
        data = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}")(program, data), "")
        return data.raw

    def _check(self, status: int, log: str) -> None:
        if status:
            self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            why = self._nvrtc.nvrtcGetErrorString(status).decode()
            lines = [line for line in log.splitlines() if "error" in line] or [why]
            raise DaliError(
                f"NVRTC cannot compile dali's kernels ({lines[0].strip()}).",
                "Update torch's CUDA build, which brings it, or use the CPU alone.",
            )


@cache
def find_compiler() -> Compiler:
    """The libnvrtc that torch brings, or else the system's. DaliError where there is none."""
    for library in _candidates():
        try:
            return Compiler(library)
        except (OSError, AttributeError):
            continue
    raise DaliError(
        "There is no libnvrtc, which compiles dali's kernels for the GPU.",
        "Install a CUDA build of torch, or nvidia-cuda-nvrtc, or use the CPU alone.",
    )


def _candidates() -> Iterator[str]:
    pattern = "nvrtc64_*_0.dll" if os.name == "nt" else "libnvrtc.so.*"
    for folder in map(Path, sys.path):
        for inside in (
            "nvidia/cu*/lib",
            "nvidia/cu*/bin/*",
            "nvidia/cuda_nvrtc/lib",
            "nvidia/cuda_nvrtc/bin",
            "torch/lib",
        ):
            yield from sorted(map(str, folder.glob(f"{inside}/{pattern}")), reverse=True)
    if (found := ctypes.util.find_library("nvrtc")) is not None:
        yield found


@cache
def sources() -> dict[str, bytes]:
    """The device code, by file name."""
    return {path.name: path.read_bytes() for path in sorted(SOURCE.glob("*.*h"))} | {
        grids.NAME: grids.header()
    }


def cubin(name: str, macros: Mapping[str, int], sm: int, kept: Path) -> bytes:
    """`source/name.cuh`, compiled now or found in the folder `kept`, which need not be there nor be writable."""
    compiler = find_compiler()
    key = xxhash.xxh3_128(repr((name, sorted(macros.items()), sm, compiler.version, OPTIONS)).encode())
    for header, body in sources().items():
        key.update(header.encode() + body)
    path = kept / f"{name}-sm_{sm}-{key.hexdigest()}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        pass
    data, _ = compiler.compile(name, macros, sm)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
        pass
    return data
