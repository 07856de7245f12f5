"""setup/environment.py: what it says where the lock does not fit, and whose torch it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "setup"))
import environment
from environment import Environment, SetUpError

NO_WHEEL = """\
ERROR: Could not find a version that satisfies the requirement xxhash==99.0 (from versions: 3.5.0, 4.0.0, 4.1.0)
ERROR: No matching distribution found for xxhash==99.0
"""
NO_INDEX = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/xxhash/
ERROR: Could not find a version that satisfies the requirement xxhash==4.1.0 (from versions: none)
ERROR: No matching distribution found for xxhash==4.1.0
"""
OTHER_FILES = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.
    idna==3.20 from https://somewhere/idna-3.20-py3-none-any.whl (from -r requirements.lock (line 200)):
        Expected sha256 00
             Got        11
"""


@pytest.mark.parametrize(
    ("output", "problem", "fix"),
    [
        (
            NO_WHEEL,
            "requirements.lock names xxhash==99.0, which the package index has not for Python ",
            "`make lock`",
        ),
        (NO_INDEX, "pip reaches no package index: ", "Run this again"),
        (
            OTHER_FILES,
            "requirements.lock names idna==3.20 by other files than the package index has.",
            "`make lock`",
        ),
        ("ERROR: new words\n", "requirements.lock cannot be installed on Python ", "`make lock`"),
        ("", "requirements.lock cannot be installed on Python ", "`make lock`"),
    ],
    ids=["no wheel", "no index", "other files", "new words", "nothing"],
)
def test_a_lock_that_does_not_fit_takes_two_sentences(output, problem, fix):
    first, second = str(environment.lock_error(output)).splitlines()
    assert first.startswith(problem)
    assert second.startswith(fix)


class Recorded(Environment):
    """Its torch is told, its pip only recorded."""

    def __init__(self, torch: str | None, exit_code: int = 0) -> None:
        super().__init__(Path(sys.prefix))
        self.python = Path(sys.executable)
        self.torch, self.exit_code = torch, exit_code
        self.installed: list[str] = []

    def version(self, package: str) -> str | None:
        assert package == "torch"
        return self.torch

    def pip(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        self.installed += map(str, arguments)
        return subprocess.CompletedProcess([], self.exit_code, "", NO_WHEEL)


@pytest.mark.parametrize(
    ("there", "wanted", "installed"),
    [
        ("2.11.0+cu130", None, []),
        ("2.14.0.dev20260101+rocm7", None, []),
        ("99.0", None, []),
        ("2.10.1", None, [environment.locked_torch()]),
        (None, None, [environment.locked_torch()]),
        ("2.13.0+cpu", "torch==2.12.0", ["torch==2.12.0"]),
    ],
)
def test_a_torch_that_fits_stays(there, wanted, installed):
    made = Recorded(there)
    made.install_torch(wanted)
    assert made.installed == installed


def test_where_no_torch_is_to_be_had_one_may_be_put_there():
    with pytest.raises(
        SetUpError, match=r"torch cannot be installed as torch==.*\nInstall a build of torch>=2"
    ):
        Recorded(None, exit_code=1).install_torch(None)


def test_the_lock_names_torch_once_in_its_range():
    assert Recorded(None).fits(
        environment.locked_torch().removeprefix("torch=="), environment.allowed("torch")
    )
    assert environment.allowed("transformers") == ">=5.17,<6"
