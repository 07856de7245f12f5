"""The GPU's kernels, compiled for the CPU by g++, one library a layout."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import POINTER, Structure, c_int, c_int64
from pathlib import Path
from typing import Any

import torch
from device_calls import ExpertsCall, GatherCall, Matrix, Panel, Work
from torch import Tensor

import dali
from dali.kernels.expert import ExpertLayout
from dali.kernels.formats import FORMATS, Format, round_up
from dali.kernels.gpu import grids
from dali.kernels.gpu.experts import experts_macros

HERE = Path(__file__).parent
SOURCE = Path(dali.__file__).parent / "kernels" / "gpu" / "source"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
COMPILER = shutil.which("g++")


def build(layout: ExpertLayout, folder: Path, passes: int = 1) -> Any:
    """The kernels for one layout, `passes` blocks of 8 tokens at a time."""
    return ctypes.CDLL(str(build_macros(experts_macros(layout, passes), folder)))


def common(folder: Path) -> Any:
    """The kernels that all layouts share."""
    return ctypes.CDLL(str(build_macros({}, folder)))


def linears(folder: Path, format: str, passes: int = 1) -> Any:
    """The kernels of linears of one format."""
    macros = {"FORMAT": list(FORMATS).index(format), "PASSES": passes}
    return ctypes.CDLL(str(build_macros(macros, folder)))


def linears_of_every_format(folder: Path, passes: int) -> Any:
    """Likewise, panels of integers; `run_linear_of` takes the format's number last."""
    macros = {"FORMAT": list(FORMATS).index("w8"), "PASSES": passes, "EVERY_FORMAT": len(FORMATS)}
    return ctypes.CDLL(str(build_macros(macros, folder)))


def build_macros(macros: dict[str, int], folder: Path) -> Path:
    """The library of kernels compiled with these."""
    library = folder / f"{'_'.join(map(str, macros.values())) or 'common'}.so"
    if not library.exists():
        (folder / grids.NAME).write_bytes(grids.header())
        command = [COMPILER, "-O1", "-std=c++17", "-ffp-contract=off", "-march=native", "-shared", "-fPIC"]
        command += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DDALI_SHIM"]
        command += [
            *(f"-D{name}={value}" for name, value in macros.items()),
            *(f"-I{place}" for place in (HERE, SOURCE, folder)),
        ]
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

    def same_as(self, other: Memory) -> bool:
        """Whether all the bits are, poison included."""
        return all(
            same_bits(getattr(self, name), getattr(other, name))
            for name in ("quants", "scales", "sums", "values")
        )


def same_bits(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def gathered(x: Tensor, columns: int, folder: Path) -> Memory:
    """The panel, quantized and floats, of x [rows, width]."""
    memory = Memory(len(x), columns)
    call = GatherCall(x.data_ptr(), memory.panel, len(x), x.shape[1], DTYPES[x.dtype])
    for format in ("w8", "f32"):
        run(linears(folder, format).run_gather_rows, call, len(x) * (columns // 32))
    return memory


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


def run(kernel: Any, call: Structure, warps: int, *more: int) -> None:
    """Launch whole blocks of four warps, as the driver would: those beyond the work must do nothing."""
    kernel.argtypes = (POINTER(type(call)), c_int64, *(c_int for _ in more))
    kernel(ctypes.byref(call), round_up(warps, 4), *more)
