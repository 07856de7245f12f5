"""What is here: versions, the machine, the GPU as its driver describes it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import import_module

import torch

from result import Result

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "tokenizers",
    "filelock",
    "psutil",
    "xxhash",
    "nanobind",
    "pytest",
)
ASKED = (
    "driver_version,pcie.link.gen.max,pcie.link.width.max,pcie.link.gen.current,clocks.max.mem,power.limit"
)


def run(result: Result) -> None:
    result.row(what="python", value=platform.python_version())
    missing = []
    for name in PACKAGES:
        try:
            module = import_module(name)
        except ImportError:
            missing.append(name)
        else:
            result.row(what=name, value=str(getattr(module, "__version__", "found")))
    for program in ("cmake", "ninja", "c++"):
        result.row(what=program, value="found" if shutil.which(program) else "missing")
    result.row(what="cores", value=len(os.sched_getaffinity(0)))
    result.row(what="RAM GiB", value=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    device = torch.cuda.get_device_properties(0)
    result.row(what="GPU", value=device.name)
    result.row(what="compute capability", value=f"{device.major}.{device.minor}")
    result.row(what="multiprocessors", value=device.multi_processor_count)
    result.row(what="L2 MiB", value=device.L2_cache_size / 2**20)
    result.row(what="GPU memory GiB", value=device.total_memory / 2**30)
    result.row(what="torch's CUDA", value=str(torch.version.cuda))
    result.figure("gpu_memory", device.total_memory, f"{device.name}, as its driver says")
    for name, value in described().items():
        result.row(what=name, value=value)
    result.limit("packages missing", len(missing), most=0)
    if missing:
        result.note(f"Missing: {', '.join(missing)}.")


def described() -> dict[str, str]:
    """ASKED of nvidia-smi; nothing where it does not answer."""
    try:
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={ASKED}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(ASKED.split(","), values, strict=True)) if len(values) == ASKED.count(",") + 1 else {}


def pcie_bandwidth() -> float | None:
    """Bytes a second of the GPU's PCI Express link, each way, by its generation and width; None where the driver does not say."""
    said = described()
    lanes = {"1": 0.25e9, "2": 0.5e9, "3": 0.985e9, "4": 1.969e9, "5": 3.938e9, "6": 7.56e9}
    generation, width = said.get("pcie.link.gen.max", ""), said.get("pcie.link.width.max", "")
    if generation not in lanes or not width.isdigit():
        return None
    return lanes[generation] * int(width)
