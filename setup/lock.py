"""Renews requirements.lock: `make lock`.

It names the newest of every package that pyproject.toml asks for (to run, to test, to build), for every platform and Python, with
the hashes of their files. torch keeps its version unless TORCH names another (`make lock TORCH=torch==2.14.0`): its builds come
from different indexes, not all of which have the newest.
"""

from __future__ import annotations

import subprocess
import sys

from environment import LOCK, ROOT, Environment, SetUpError, last_error, locked_torch

HEADER = """\
# What `make run` and `make test` install, to run, test and build dali on any platform with Python 3.11 or newer. Renewed by
# `make lock`, never by hand. torch has no hash, as its builds differ by machine under one version:
# {torch}
"""
OPTIONS = (
    "--extra dev --group build --universal --python-version 3.11 --generate-hashes --only-binary :all:"
    " --no-emit-package torch --no-header --no-annotate"
)


def resolve(torch: str) -> str:
    """The lock's lines."""
    environment = Environment(ROOT / ".venv-lock")
    environment.create()
    if (done := environment.pip("--upgrade", "uv")).returncode:
        raise SetUpError(
            f"uv, which makes the lock, is not to be had: {last_error(done.stderr)}", "See pip's settings."
        )
    constraints = environment.folder / "constraints.txt"
    constraints.write_text(torch, encoding="utf-8")
    uv = str(environment.programs / "uv")
    command = [uv, "pip", "compile", "pyproject.toml", *OPTIONS.split(), "--constraints", str(constraints)]
    solved = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if solved.returncode:
        raise SetUpError(f"No set of packages fits pyproject.toml and {torch}.", solved.stderr.strip())
    lines = [line for line in solved.stdout.splitlines(keepends=True) if not line.startswith("#")]
    return "".join(lines).strip() + "\n"


def main() -> None:
    try:
        torch = sys.argv[1] if sys.argv[1:] else locked_torch()
        lines = resolve(torch)
    except SetUpError as error:
        sys.exit(str(error))
    fresh = LOCK.with_suffix(".new")
    fresh.write_text(HEADER.format(torch=torch) + lines, encoding="utf-8")
    fresh.replace(LOCK)


if __name__ == "__main__":
    main()
