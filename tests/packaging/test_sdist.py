"""What an sdist holds, made in a checkout that was used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SDIST = "from scikit_build_core.build import build_sdist; build_sdist('dist')"
# Left behind by use: environments, builds, caches, kernels, what a user keeps beside the sources.
USE = [
    ".venv/bin/python", ".venv/lib/python3.11/site-packages/numpy/tests/test_all.py", ".venv-newest/src/README.md",
    ".venv-oldest/docs/README.md", ".venv-lock/bin/uv", "build/venv/cp311/src/CMakeCache.txt", "build/sanitize/tests/LICENSE",
    "dist/dali_moe-0.0.1.tar.gz", ".pytest_cache/README.md", ".mypy_cache/3.11/src/dali.json", ".ruff_cache/0.1/src",
    "tests/.pytest_cache/v", "tests/cli/.hypothesis/examples", ".hypothesis/tests/x", ".git/config", "trace.npz", "model.gguf",
    "src/dali/__pycache__/llm.cpython-311.pyc", "tests/__pycache__/families.cpython-311.pyc",
    "src/dali/kernels/_native.cpython-311-x86_64-linux-gnu.so", "src/dali/kernels/_native.pyd", "src/dali_moe.egg-info/PKG-INFO",
]  # fmt: skip


def sources() -> list[str]:
    """The files of the repository, where it is one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("This is no checkout of the repository.")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> set[str]:
    """The sdist's, of a checkout with all that use leaves behind."""
    pytest.importorskip("scikit_build_core")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in sources():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).stat().st_size > 1 << 20:
            (checkout / name).touch()  # only names matter, and a model takes long to compress
        else:
            shutil.copy(ROOT / name, checkout / name)
    for name in USE:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("used")
    subprocess.run([sys.executable, "-c", SDIST], cwd=checkout, check=True, capture_output=True)
    [sdist] = (path for path in (checkout / "dist").iterdir() if path.name != "dali_moe-0.0.1.tar.gz")
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_it_holds_nothing_of_use(names):
    assert not names & set(USE)
    assert names - set(sources()) == {"PKG-INFO"}


def test_it_holds_every_source(names):
    """But what only the repository needs."""
    assert set(sources()) - names == {".ci/run", ".gitignore"}
