"""The native tests under the address and undefined-behaviour sanitizers: `make sanitize`.

Builds the kernels once more with both, in build/sanitize, and runs the tests of all that is compiled (or what is named) on
them. Needs cmake, ninja and a compiler with its sanitizers' runtime. A finding ends the run with the sanitizer's report.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
MODULE = "dali.kernels._native"
TESTS = [
    "kernels",
    "hooks/test_moe_layer.py",
    "fused/test_dense.py",  # norms
    "fused/test_router.py",
    "hooks/test_attention.py",
    "fused/test_fused_attention.py",
    "fused/test_fused_layer.py",
    "fused/test_fused_model.py",
    "loading/gguf/test_gguf_linears.py",
    "loading/gguf/test_gguf_embeddings.py",
    "store/gguf/test_gguf_blocks.py",  # repacking
    "store/test_disk_pool.py",
    "policies/test_two_lane.py",  # its search
    "runtime/test_planner.py",
    "devices/test_compiled_dependencies.py",
]


def build() -> Path:
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DDALI_SANITIZE=address,undefined"]
    subprocess.run(["cmake", "-G", "Ninja", *options, "-S", ROOT / "src" / "native", "-B", BUILD], check=True)
    subprocess.run(["cmake", "--build", BUILD], check=True)
    return next(BUILD.glob("_native*.so"))


def runtime() -> str:
    """Python itself is not built with the sanitizer: its runtime must come first in the process."""
    found = [
        subprocess.run(
            ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return " ".join(found)


def test(library: str, arguments: list[str]) -> int:
    spec = importlib.util.spec_from_file_location(MODULE, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[MODULE] = module  # in place of the one that is installed
    import pytest

    # Not the process's own output: the sanitizers' reports go there.
    return int(pytest.main(["-q", "--capture=sys", "-p", "no:cacheprovider", *arguments]))


if __name__ == "__main__":
    if "LD_PRELOAD" in os.environ:
        sys.exit(test(sys.argv[1], sys.argv[2:]))
    wanted = sys.argv[1:] or [str(ROOT / "tests" / test) for test in TESTS]
    environment = {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python's own at exit
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, str(build()), *wanted]
    sys.exit(subprocess.run(command, env=os.environ | environment, check=False).returncode)
