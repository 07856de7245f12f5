"""An environment that has all of another one and what a lock names beside: `python setup/beside.py .venv-ray .venv
requirements-ray.lock`. So that what few tests need is not installed for all, and is tested with the same torch and dali."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from environment import ROOT, Environment, SetUpError, lock_error

PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"


def borrow(environment: Environment, other: Environment) -> None:
    """From here on, `environment` has what `other` has, editable packages included."""
    own, theirs = (
        subprocess.run(
            [one.python, "-c", PACKAGES], capture_output=True, text=True, check=True
        ).stdout.strip()
        for one in (environment, other)
    )
    Path(own, "borrowed.pth").write_text(f"import site; site.addsitedir({theirs!r})\n", encoding="utf-8")


def main() -> None:
    folder, other, lock = sys.argv[1:]
    environment = Environment(ROOT / folder)
    try:
        environment.create()
        borrow(environment, Environment(ROOT / other))
        done = environment.pip("--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", ROOT / lock)
        if done.returncode:
            raise lock_error(done.stderr, Path(lock).name)
    except SetUpError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
