"""The GPU's kernels, compiled for the CPU by g++, one library a layout; and their calls as the device code declares them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dali
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import Format, round_up
from dali.kernels.gpu.experts import experts_macros

HERE = Path(__file__).parent
SOURCE = Path(dali.__file__).parent / "kernels" / "gpu" / "source"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
COMPILER = shutil.which("g++")


class Matrix(Structure):
    _fields_ = (("at", c_int64), ("rows", c_int), ("columns", c_int), ("plane", c_int))


class Panel(Structure):
    _fields_ = (*((name, c_void_p) for name in ("quants", "scales", "sums", "values")), ("columns", c_int))


class Work(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("records", "begin", "pairs")),
        ("active", c_int),
        ("few_records", c_void_p * 64),
        ("few_begin", c_int * 65),
        ("few_pairs", c_int * 256),
    )


class GatherCall(Structure):
    _fields_ = (("x", c_void_p), ("panel", Panel), *((name, c_int) for name in ("tokens", "width", "dtype")))


class ExpertsCall(Structure):
    _fields_ = (
        ("work", Work),
        *((name, c_int) for name in ("top_k", "hidden", "intermediate")),
        ("outer", Panel),
        ("inner", Panel),
        ("rows", c_void_p),
        *((name, Matrix) for name in ("gate", "up", "down")),
        *((f"{name}_bias", c_int64) for name in ("gate", "up", "down")),
        ("alpha", c_float),
        ("limit", c_float),
    )


class JoinCall(Structure):
    _fields_ = (
        ("rows", c_void_p),
        ("above", c_void_p),
        ("on_cpu", c_uint32 * 8),
        *((name, c_void_p) for name in ("places", "weights", "out")),
        *((name, c_int) for name in ("tokens", "top_k", "hidden", "dtype", "weights_dtype")),
    )


class LinearCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("out", "packed", "bias")),
        ("panel", Panel),
        ("matrix", Matrix),
        ("tokens", c_int),
        ("dtype", c_int),
    )


class NormCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "out")),
        *((name, c_int) for name in ("rows", "width", "dtype")),
        ("epsilon", c_float),
    )


class KeptToken(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        *((name, c_int64) for name in ("capacity", "place", "first")),
        ("row", c_int),
    )


class AttendCall(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query", "keys", "values", "out", "kept", "sinks")),
        *((name, c_void_p) for name in ("scores", "most", "total", "sums")),
        *(
            (name, c_int)
            for name in ("tokens", "parts", "heads", "kv_heads", "key_width", "value_width", "dtype")
        ),
        ("scale", c_float),
    )


class PostCall(Structure):
    _fields_ = (
        ("from_", c_void_p * 4),
        ("to", c_void_p * 4),
        ("words", c_int * 4),
        ("flag", c_void_p),
        ("number", c_uint32),
    )


def build(layout: ExpertLayout, folder: Path, passes: int = 1) -> Any:
    """The kernels for one layout, `passes` blocks of 8 tokens at a time."""
    return ctypes.CDLL(str(build_macros(experts_macros(layout, passes), folder)))


def build_macros(macros: dict[str, int], folder: Path) -> Path:
    """The library of kernels compiled with these."""
    library = folder / f"{'_'.join(map(str, macros.values()))}.so"
    if not library.exists():
        command = [COMPILER, "-O2", "-std=c++17", "-ffp-contract=off", "-march=native", "-shared", "-fPIC"]
        command += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DDALI_SHIM"]
        command += [*(f"-D{name}={value}" for name, value in macros.items()), f"-I{HERE}", f"-I{SOURCE}"]
        done = subprocess.run([*command, HERE / "shimmed.cpp", "-o", library], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
    return library


class Memory:
    """A panel with rows of poison around it, so that what a kernel writes elsewhere shows."""

    def __init__(self, rows: int, columns: int) -> None:
        self.quants = torch.full((rows + 1, columns), 99, dtype=torch.int8)
        self.scales = torch.full((rows + 1, columns // 32), float("nan"))
        self.sums = torch.full((rows + 1, columns // 32), -(2**31), dtype=torch.int32)
        self.values = torch.full((rows + 1, columns), float("nan"))
        self.panel = Panel(
            *(t.data_ptr() for t in (self.quants, self.scales, self.sums, self.values)), columns
        )


def matrix(layout: ExpertLayout, name: str) -> Matrix:
    if name not in layout.shape.matrices:
        return Matrix()
    rows, columns = layout.shape.matrices[name]
    return matrix_of(layout.formats[name], rows, columns, layout.offsets[name][0])


def matrix_of(format: Format, rows: int, columns: int, at: int = 0) -> Matrix:
    return Matrix(at, rows, round_up(columns, format.block), format.scale_plane_bytes(columns))


def compute_experts(
    library: Any,
    layout: ExpertLayout,
    records: list[Tensor],
    offsets: list[int],
    pairs: Tensor,
    x: Tensor,
    rows: Tensor,
) -> None:
    """As kernels.native.compute_experts."""
    shape, tokens, active = layout.shape, len(x), len(records)
    gate, up, down = (matrix(layout, name) for name in ("gate", "up", "down"))
    outer, inner = Memory(tokens, max(gate.columns, up.columns)), Memory(offsets[-1], down.columns)
    addresses = torch.tensor([record.data_ptr() for record in records], dtype=torch.int64)
    begin, pairs = torch.tensor(offsets, dtype=torch.int32), pairs.to(torch.int32)
    if len(pairs) <= 32:
        work = Work(active=active)
        work.few_records[:active], work.few_begin[: active + 1] = addresses.tolist(), offsets
        work.few_pairs[: len(pairs)] = pairs.tolist()
    else:
        work = Work(addresses.data_ptr(), begin.data_ptr(), pairs.data_ptr(), active)
    biases = [layout.offsets.get(f"{name}_bias", (0, 0))[0] for name in ("gate", "up", "down")]
    sizes = len(rows) // tokens, shape.hidden, shape.intermediate
    matrices = gate, up, down, *biases
    activation = shape.activation.alpha, shape.activation.limit
    call = ExpertsCall(work, *sizes, outer.panel, inner.panel, rows.data_ptr(), *matrices, *activation)
    gather = GatherCall(x.data_ptr(), outer.panel, tokens, shape.hidden, DTYPES[x.dtype])
    run(library.run_gather, gather, tokens * (outer.panel.columns // 32))
    run(library.run_inner, call, active * (inner.panel.columns // 32))
    run(library.run_down, call, active * -(-shape.hidden // 32))


def run(kernel: Any, call: Structure, warps: int) -> None:
    """Launch whole blocks of four warps, as the driver would: those beyond the work must do nothing."""
    kernel.argtypes = (POINTER(type(call)), c_int64)
    kernel(ctypes.byref(call), round_up(warps, 4))
