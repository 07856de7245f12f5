"""Packs dali as others get it, and runs it there: `make packages`.

The sdist is made of the checkout, the wheel of the sdist, both into dist/ and with the tools that requirements.lock pins. The
wheel is installed into an environment of its own, far from the sources, and has to answer with compiled kernels.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
LARGEST = 40 << 20  # bytes; the model that ships inside is 15 MB of them
SDIST = "from scikit_build_core.build import build_sdist; build_sdist(__import__('sys').argv[1])"
KERNELS = "from dali.kernels import native; import dali; assert native.enabled(), 'no kernels'; print(dali.__file__)"


def run(command: list[str | Path], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with exit code {done.returncode}: {done.stdout}")
    return done.stdout


def only(pattern: str) -> Path:
    [path] = DIST.glob(pattern)
    return path


def pack() -> tuple[Path, Path]:
    """The sdist, and the wheel that is built of it alone."""
    for old in [*DIST.glob("dali_moe-*.tar.gz"), *DIST.glob("dali_moe-*.whl")]:
        old.unlink()
    run([sys.executable, "-c", SDIST, DIST], ROOT)
    sdist = only("dali_moe-*.tar.gz")
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # the locked cmake and ninja
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", DIST, sdist], DIST, PATH=path)
    return sdist, only("dali_moe-*.whl")


def install(wheel: Path, folder: Path) -> Path:
    """Python of a new environment that holds the wheel. What dali requires, it borrows from the locked environment."""
    run([sys.executable, "-m", "venv", folder], ROOT)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "locked.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel], folder)
    return python


def main() -> None:
    sdist, wheel = pack()
    for package in (sdist, wheel):
        size = package.stat().st_size
        print(f"{package.relative_to(ROOT)}: {size / (1 << 20):.1f} MiB")
        if size > LARGEST:
            sys.exit(f"That is more than {LARGEST >> 20} MiB.")
    with tarfile.open(sdist) as archive:
        print(f"{len(archive.getnames())} files in the sdist")
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Path(folder)
        python = install(wheel, elsewhere / "environment")
        where = run([python, "-c", KERNELS], elsewhere).strip()
        if not Path(where).is_relative_to(elsewhere):
            sys.exit(f"The wheel was to answer, but dali came from {where}.")
        dali = python.parent / "dali"
        print(
            run(
                [dali, "run", "hi there", "-n", "20", "--seed", "1"],
                elsewhere,
                DALI_CACHE_DIR=str(elsewhere / "cache"),
            )
        )


if __name__ == "__main__":
    main()
