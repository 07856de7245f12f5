"""Makes an environment from requirements.lock, or brings one up to date: `python setup/environment.py .venv`.

Only what the lock names is installed, checked by hash, and the kernels are built by what the lock names. torch comes apart: its
builds differ by machine under one version, so a torch that is there and fits pyproject.toml's range stays, and else the package
index is asked for the lock's version. Needs nothing but Python's own library.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 before the imports below fail
    sys.exit(f"dali needs Python 3.11 or newer, this is {sys.version.split()[0]}.")

import argparse
import os
import platform
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
# What pip says where no answer came from an index, rather than the answer no.
UNREACHABLE = re.compile(
    r"Retrying \(|NewConnectionError|Temporary failure|Max retries exceeded|ConnectTimeout"
)
MISSING = re.compile(r"No matching distribution found for ([^\s;]+)")
OTHER_HASH = re.compile(r"^\s+([\w.-]+==\S+?)[ ;].*from (?:https?|file):", re.MULTILINE)
HAS = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
FITS = "import sys; from packaging.specifiers import SpecifierSet as S; sys.exit(sys.argv[1] not in S(sys.argv[2], True))"


class SetUpError(Exception):
    """One sentence on what is wrong, one on what helps."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n{fix}")


class Environment:
    """A virtual environment below the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.programs / ("python.exe" if os.name == "nt" else "python")

    def create(self) -> None:
        if (
            not self.python.exists()
            and subprocess.run([sys.executable, "-m", "venv", self.folder]).returncode
        ):
            raise SetUpError(
                f"{sys.executable} cannot make the environment {self.folder}.",
                "Install what its message above names (Debian: python3-venv), and run this again.",
            )

    def pip(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        # The locked cmake and ninja are found before the system's.
        path = os.pathsep.join([str(self.programs), os.environ.get("PATH", "")])
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )

    def version(self, package: str) -> str | None:
        found = subprocess.run([self.python, "-c", HAS, package], capture_output=True, text=True)
        return None if found.returncode else found.stdout.strip()

    def fits(self, version: str, allowed: str) -> bool:
        return subprocess.run([self.python, "-c", FITS, version, allowed]).returncode == 0

    def install_locked(self) -> None:
        """No package's own requirements are followed, and nothing is compiled: the lock names all."""
        done = self.pip("--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", LOCK)
        if done.returncode:
            raise lock_error(done.stderr)

    def install_torch(self, wanted: str | None) -> None:
        """`wanted` is a requirement; without one, what is there stays if pyproject.toml allows it."""
        there = self.version("torch")
        if wanted is None and there is not None and self.fits(there, allowed("torch")):
            return
        requirement = wanted or locked_torch()
        done = self.pip(requirement)
        if done.returncode:
            raise SetUpError(
                f"torch cannot be installed as {requirement} for {machine()}: {last_error(done.stderr)}",
                f"Install a build of torch{allowed('torch')} into {self.folder.name} yourself: it is kept.",
            )

    def install_transformers(self, which: str) -> None:
        """The newest or the oldest that pyproject.toml allows, with what it requires."""
        span = allowed("transformers")
        requirement = f"transformers{span}"
        if which == "oldest":
            requirement = f"transformers=={re.search(r'>=([^,]+)', span)[1]}"  # type: ignore[index]
        done = self.pip("--upgrade", "--upgrade-strategy", "only-if-needed", requirement)
        if done.returncode:
            raise SetUpError(
                f"{requirement} cannot be installed: {last_error(done.stderr)}", "See pip's settings."
            )

    def install_dali(self) -> None:
        """Editable; its kernels are compiled by the environment's own tools, in a build folder of its own."""
        build = f"build-dir=build/{self.folder.name.lstrip('.')}/{{wheel_tag}}"
        done = self.pip("--no-deps", "--no-build-isolation", "--config-settings", build, "--editable", ".")
        if done.returncode:
            raise SetUpError("dali itself cannot be installed. pip says:", done.stderr.strip())
        # Now, as the folders of compiled files change those they lie in, and make takes that for a module that came or went.
        subprocess.run([self.python, "-m", "compileall", "-q", ROOT / "src" / "dali"])


def allowed(package: str) -> str:
    """The range of a requirement in pyproject.toml, such as >=2.11."""
    requirements: list[str] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    [line] = (line for line in requirements if re.match(rf"{package}\b", line))
    return line.removeprefix(package)


def locked_torch() -> str:
    found = re.search(r"^# (torch==\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SetUpError(f"{LOCK.name} names no torch.", "Make it anew: `make lock TORCH=torch==VERSION`.")
    return found[1]


def lock_error(output: str, lock: str = LOCK.name) -> SetUpError:
    """Why pip could not install the lock."""
    if UNREACHABLE.search(output):
        return SetUpError(
            f"pip reaches no package index: {last_error(output)}", "Run this again where it does."
        )
    if missing := MISSING.search(output):
        problem = f"{lock} names {missing[1]}, which the package index has not for {machine()}."
    elif other := OTHER_HASH.search(output):
        problem = f"{lock} names {other[1]} by other files than the package index has."
    else:
        problem = f"{lock} cannot be installed on {machine()}: {last_error(output)}"
    return SetUpError(problem, "`make lock` makes one of what your index has today.")


def machine() -> str:
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def last_error(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["pip says nothing."]
    return errors[-1].removeprefix("ERROR: ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes an environment from requirements.lock.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", help="install this one, whatever is there (such as torch==2.13.0)")
    parser.add_argument("--transformers", choices=("oldest", "newest"), help="in place of the locked one")
    options = parser.parse_args()
    environment = Environment(ROOT / options.folder)
    try:
        environment.create()
        environment.install_locked()
        environment.install_torch(options.torch or None)
        if options.transformers:
            environment.install_transformers(options.transformers)
        environment.install_dali()
    except SetUpError as error:
        sys.exit(str(error))
    names = ("torch", "transformers")
    print(options.folder, *(f"{name} {environment.version(name)}" for name in names), sep=", ")


if __name__ == "__main__":
    main()
