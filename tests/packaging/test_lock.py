"""requirements.lock: what it must name, and what it must not."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parents[2] / "setup"))
import environment

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = [Requirement(line.rstrip("\\ ")) for line in LOCK.splitlines() if re.match(r"\w", line)]
PINS.append(Requirement(environment.locked_torch()))
ASKED = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["dev"],
    *PROJECT["dependency-groups"]["build"],
    *PROJECT["build-system"]["requires"],
]


@pytest.mark.parametrize("asked", sorted(set(ASKED)))
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_every_requirement_is_pinned_once_on_every_platform_it_is_for(asked, python, system):
    wanted = Requirement(asked)
    here = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": system}
    pins = [
        pin
        for pin in PINS
        if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
        and (pin.marker is None or pin.marker.evaluate(here))
    ]
    if wanted.marker is not None and not wanted.marker.evaluate(here):
        assert not pins
        return
    assert len(pins) == 1
    [version] = pins[0].specifier
    assert version.operator == "=="
    assert version.version in wanted.specifier


def test_every_pin_but_torchs_has_hashes():
    packages = re.split(r"^(?=\w)", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) == len(PINS) - 1
    assert all("--hash=sha256:" in package for package in packages)


def test_it_names_no_host_and_no_path():
    assert not re.search(r"://|^--|^-|(^|\s)/", LOCK, re.MULTILINE)
