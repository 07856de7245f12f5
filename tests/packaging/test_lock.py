"""requirements.lock, and requirements-ray.lock beside it: what they must name, and what they must not."""

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
RAY_LOCK = (ROOT / "requirements-ray.lock").read_text(encoding="utf-8")
LOCKS = pytest.mark.parametrize("lock", [LOCK, RAY_LOCK], ids=["base", "ray"])


def pinned(lock: str) -> list[Requirement]:
    return [Requirement(line.rstrip("\\ ")) for line in lock.splitlines() if re.match(r"\w", line)]


PINS = pinned(LOCK)
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


@LOCKS
def test_every_pin_but_torchs_has_hashes(lock):
    packages = re.split(r"^(?=\w)", lock, flags=re.MULTILINE)[1:]
    assert len(packages) == len(pinned(lock)) > 40
    assert all("--hash=sha256:" in package for package in packages)


@LOCKS
def test_it_names_no_host_and_no_path(lock):
    assert not re.search(r"://|^--|^-|(^|\s)/", lock, re.MULTILINE)


def test_rays_lock_has_what_the_extra_asks_for_and_nothing_twice():
    [asked] = map(Requirement, PROJECT["project"]["optional-dependencies"]["ray"])
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pinned(RAY_LOCK)}
    assert versions[asked.name].removeprefix("==") in asked.specifier
    assert versions.keys().isdisjoint(canonicalize_name(pin.name) for pin in PINS)
