"""The GPU's kernels through NVRTC, which needs no GPU: they compile for every generation, keep to registers and read wide."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dali.errors import DaliError
from dali.kernels.activation import KINDS
from dali.kernels.formats import FORMATS
from dali.kernels.gpu import compiler
from dali.kernels.gpu.compiler import cubin, find_compiler

GENERATIONS = (75, 80, 86, 89, 90, 100, 120)
MOST_REGISTERS = 128  # four blocks of four warps a multiprocessor
# Every format once, floats apart; the last ones again where three are not left.
TRIPLES = [tuple(FORMATS)[min(first, len(FORMATS) - 3) :][:3] for first in range(0, len(FORMATS), 3)]
DISASSEMBLER = next(
    (path for folder in map(Path, sys.path) for path in folder.glob("nvidia/cu*/bin/nvdisasm")), None
)


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return find_compiler()
    except DaliError as error:
        pytest.skip(error.problem)


def macros(formats: tuple[str, ...], passes: int, kind: str = "silu", biased: bool = False) -> dict[str, int]:
    """Of gate, up and down; linears in the first."""
    gate, up, down = (list(FORMATS).index(name) for name in formats)
    fixed = {"GATE": gate, "UP": up, "DOWN": down, "FORMAT": gate}
    return fixed | {"ACTIVATION": KINDS.index(kind), "GATED": 1, "BIASED": int(biased), "PASSES": passes}


def check(log: str) -> None:
    assert set(re.findall(r"(\d+) bytes spill", log)) == {"0"}, log
    assert max(map(int, re.findall(r"Used (\d+) registers", log))) <= MOST_REGISTERS, log


@pytest.mark.parametrize("sm", GENERATIONS)
def test_decoding_kernels_keep_to_registers_on_every_generation(nvrtc, sm):
    check(nvrtc.compile("experts", macros(("w4",) * 3, 1), sm, ("--ptxas-options=-v",))[1])


@pytest.mark.parametrize("formats", TRIPLES, ids="-".join)
def test_every_format_keeps_to_registers(nvrtc, formats):
    """Two passes take the most, and the newest generation's compiler."""
    check(nvrtc.compile("experts", macros(formats, 2), GENERATIONS[-1], ("--ptxas-options=-v",))[1])


def test_other_activations_compile(nvrtc):
    check(
        nvrtc.compile("experts", macros(("w8",) * 3, 1, KINDS[-1], biased=True), 86, ("--ptxas-options=-v",))[
            1
        ]
    )


@pytest.mark.parametrize("format", ["bf16", "q2k", "iq1_m"])
def test_linears_keep_to_registers(nvrtc, format):
    check(nvrtc.compile("linear", macros((format,) * 3, 2), 89, ("--ptxas-options=-v",))[1])


@pytest.mark.parametrize("sm", GENERATIONS)
def test_decoding_linears_keep_to_registers_on_every_generation(nvrtc, sm):
    check(nvrtc.compile("linear", macros(("w8",) * 3, 1), sm, ("--ptxas-options=-v",))[1])


SHARED = ["add_norm", "attend", "collect_highest", "gate_up", "highest_of_pieces", "highest_of_rows", "join"]
SHARED += ["merge", "post", "rms_norm", "route_choose", "route_products", "share", "turn"]


def bodies(code: bytes, file: Path) -> dict[str, str]:
    """Each kernel's instructions."""
    file.write_bytes(code)
    text = subprocess.run([DISASSEMBLER, "-c", file], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.section\s+\.text\.(\w+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.skipif(DISASSEMBLER is None, reason="there is no nvdisasm")
@pytest.mark.parametrize("format", ["w4", "q4k"])
def test_weights_are_read_16_bytes_a_lane_and_multiplied_by_tensor_cores(nvrtc, format, tmp_path):
    found = bodies(nvrtc.compile("experts", macros((format,) * 3, 1), 89)[0], tmp_path / "kernels.cubin")
    for kernel in ("inner", "down"):
        assert len(re.findall(r"\bLDG\.E\.\S*128", found[kernel])) >= 4
        assert len(re.findall(r"\bIMMA", found[kernel])) >= 16
        assert not re.findall(r"\bLDL|\bSTL", found[kernel])  # local memory


@pytest.mark.parametrize("sm", [GENERATIONS[0], GENERATIONS[-1]])
def test_what_layouts_share_keeps_to_registers_and_reads_much_at_once(nvrtc, sm, tmp_path):
    code, log = nvrtc.compile("common", {}, sm, ("--ptxas-options=-v",))
    check(log)
    assert len(re.findall(r"Used \d+ registers", log)) == len(SHARED)
    if DISASSEMBLER is None:
        return
    found = bodies(code, tmp_path / "kernels.cubin")
    assert sorted(found) == SHARED
    for body in found.values():
        assert not re.findall(r"\bLDL|\bSTL", body)
    assert len(re.findall(r"\bLDG\.E\.\S*128", found["attend"])) >= 28  # keys, and float32 values
    for kernel in ("add_norm", "route_products"):  # a batch of loads before the first value is worked on
        loads = [match.start() for match in re.finditer(r"\bLDG", found[kernel])]
        between = [found[kernel][begin:end] for begin, end in zip(loads, loads[7:], strict=False)]
        assert any("SHFL" not in one for one in between)


def test_what_was_compiled_is_kept(nvrtc, tmp_path, monkeypatch):
    first = cubin("post", {}, 89, tmp_path / "cubins")
    (kept,) = (tmp_path / "cubins").iterdir()
    assert kept.read_bytes() == first
    monkeypatch.setattr(compiler.Compiler, "compile", lambda *arguments: pytest.fail("compiled again"))
    assert cubin("post", {}, 89, tmp_path / "cubins") == first


def test_a_folder_that_cannot_be_written_is_done_without(nvrtc, tmp_path):
    (tmp_path / "cubins").write_text("a file")
    assert cubin("post", {}, 89, tmp_path / "cubins")


def test_what_does_not_compile_is_said(nvrtc):
    with pytest.raises(DaliError, match=r"NVRTC cannot compile dali's kernels \(.*FORMAT.*\)"):
        nvrtc.compile("linear", {}, 89)


def test_no_libnvrtc_is_said(monkeypatch):
    find_compiler.cache_clear()
    monkeypatch.setattr(compiler, "_candidates", lambda: ["/nowhere/libnvrtc.so"])
    with pytest.raises(DaliError, match=r"no libnvrtc.*\n.*CUDA build of torch"):
        find_compiler()
    find_compiler.cache_clear()
