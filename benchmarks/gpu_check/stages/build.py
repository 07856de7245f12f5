"""The library built by cmake from this checkout, for this Python; every kernel by NVRTC for this GPU, with time and registers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from result import CannotRun, Result
from runner import ROOT

MOST_REGISTERS = 128  # four blocks of four warps a multiprocessor


def run(result: Result) -> None:
    build_library(result)
    compile_kernels(result)


def build_library(result: Result) -> None:
    """Into build/gpu_check, and from there to where dali looks for it."""
    if missing := [name for name in ("cmake", "ninja") if shutil.which(name) is None]:
        raise CannotRun(f"There is no {missing[0]} on PATH, which builds dali's library.")
    folder = ROOT / "build" / f"gpu_check-{sysconfig.get_config_var('SOABI')}"
    started = time.monotonic()
    configure = ["cmake", "-S", str(ROOT / "src" / "native"), "-B", str(folder), "-G", "Ninja"]
    for command in ([*configure, f"-DPython_EXECUTABLE={sys.executable}"], ["ninja", "-C", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr)
            raise RuntimeError(
                f"{command[0]} failed: {done.stderr.strip()[-300:] or done.stdout.strip()[-300:]}"
            )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    place = ROOT / "src" / "dali" / "kernels" / f"_native{suffix}"
    shutil.copy2(folder / place.name, place.with_suffix(".new"))
    place.with_suffix(".new").replace(place)  # whoever has the old one open keeps it
    result.row(what="library", seconds=time.monotonic() - started)


def compile_kernels(result: Result) -> None:
    """All that later stages use, kept in the cache they share."""
    from dali.kernels.formats import FORMATS
    from dali.kernels.gpu.compiler import cubin, find_compiler
    from dali.store.cache import cache_root

    major, minor = torch.cuda.get_device_capability(0)
    sm, kept = major * 10 + minor, cache_root() / "cubins"

    def compile_one(each: tuple[str, Mapping[str, int], str]) -> tuple[str, float, int, int]:
        name, macros, title = each
        started = time.monotonic()
        _, log = find_compiler().compile(name, macros, sm, ("--ptxas-options=-v",))
        seconds = time.monotonic() - started
        cubin(name, macros, sm, kept)
        registers = max(map(int, re.findall(r"Used (\d+) registers", log)), default=0)
        return title, seconds, registers, sum(map(int, re.findall(r"(\d+) bytes spill", log)))

    wanted: list[tuple[str, Mapping[str, int], str]] = [("common", {}, "common")]
    for number, format in enumerate(FORMATS):
        for passes in (1, 2):
            macros = dict.fromkeys(("GATE", "UP", "DOWN"), number)
            macros |= {"ACTIVATION": 0, "GATED": 1, "BIASED": 0, "PASSES": passes}
            wanted.append(("experts", macros, f"experts {format} x {passes}"))
            wanted.append(("linear", {"FORMAT": number, "PASSES": passes}, f"linear {format} x {passes}"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(compile_one, wanted))
    for title, seconds, registers, spilled in found:
        result.row(what=title, seconds=seconds, registers=registers, spilled=spilled)
    result.limit("registers", max(one[2] for one in found), most=MOST_REGISTERS)
    result.limit("bytes spilled", sum(one[3] for one in found), most=0)
