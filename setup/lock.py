"""Renews requirements.lock, and requirements-ray.lock: `make lock`.

It names the newest of every package that pyproject.toml asks for (to run, to test, to build), for every platform and Python, with
the hashes of their files. torch keeps its version unless TORCH names another (`make lock TORCH=torch==2.14.0`): its builds come
from different indexes, not all of which have the newest. What
the extra `ray` needs beside is in a lock of its own, as few tests need it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from environment import LOCK, ROOT, Environment, SetUpError, last_error, locked_torch

HEADER = """\
# What `make run` and `make test` install, to run, test and build dali on any platform with Python 3.11 or newer. Renewed by
# `make lock`, never by hand. torch has no hash, as its builds differ by machine under one version:
# {torch}
"""
RAY_LOCK = ROOT / "requirements-ray.lock"
RAY_HEADER = """\
# What `make ray` installs beside requirements.lock, to test dali on a Ray cluster. Renewed by `make lock`, never by hand.
"""
OPTIONS = (
    "--universal --python-version 3.11 --generate-hashes --only-binary :all: --no-emit-package torch --no-header"
    " --no-annotate"
)
BASE = "--extra dev --group build"
RAY = "--extra ray"


def install_uv(environment: Environment) -> None:
    environment.create()
    if (done := environment.pip("--upgrade", "uv")).returncode:
        raise SetUpError(
            f"uv, which makes the lock, is not to be had: {last_error(done.stderr)}", "See pip's settings."
        )


def resolve(environment: Environment, what: str, constraints: str) -> str:
    """The lock's lines for `what` of pyproject.toml, of versions that `constraints` allow."""
    file = environment.folder / "constraints.txt"
    file.write_text(constraints, encoding="utf-8")
    uv = str(environment.programs / "uv")
    options = [*what.split(), *OPTIONS.split(), "--constraints", str(file)]
    solved = subprocess.run(
        [uv, "pip", "compile", "pyproject.toml", *options], cwd=ROOT, capture_output=True, text=True
    )
    if solved.returncode:
        raise SetUpError(f"No set of packages fits pyproject.toml with {what}.", solved.stderr.strip())
    lines = [line for line in solved.stdout.splitlines(keepends=True) if not line.startswith("#")]
    return "".join(lines).strip() + "\n"


def packages(lines: str) -> list[str]:
    """A lock's lines, package by package."""
    return re.split(r"^(?=\w)", lines, flags=re.MULTILINE)[1:]


def beside(lines: str, base: str) -> str:
    """Of a lock's packages, those that `base` has not."""
    there = {name(package) for package in packages(base)}
    return "".join(package for package in packages(lines) if name(package) not in there)


def name(package: str) -> str:
    return package.partition("==")[0]


def write(lock: Path, text: str) -> None:
    fresh = lock.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(lock)


def main() -> None:
    try:
        torch = sys.argv[1] if sys.argv[1:] else locked_torch()
        environment = Environment(ROOT / ".venv-lock")
        install_uv(environment)
        lines = resolve(environment, BASE, torch)
        pins = [package.partition(" \\")[0] for package in packages(lines)]
        ray = resolve(environment, RAY, "\n".join([torch, *pins]))
    except SetUpError as error:
        sys.exit(str(error))
    write(LOCK, HEADER.format(torch=torch) + lines)
    write(RAY_LOCK, RAY_HEADER + beside(ray, lines))


if __name__ == "__main__":
    main()
