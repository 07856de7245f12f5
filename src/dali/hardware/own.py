"""This machine's own profile: where `dali bench hw` leaves it, and whether it can be believed. Needs no torch.

Whatever is wrong with it, nothing fails that did not ask for it by name: it is said, and the run goes on without. One that cannot
be read is set aside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dali.errors import DaliError, UsageError
from dali.hardware.machine import Machine, differences, this_machine
from dali.hardware.profile import ACCELERATOR, DISK, PLAIN, Figure, Profile, Table
from dali.store import whole
from dali.store.cache import cache_root
from dali.store.folders import expanded, user_folder

AGAIN = "Measure again: `dali bench hw`."


def config_root() -> Path:
    """DALI_CONFIG_DIR, else the platform's folder for a user's settings."""
    override = os.environ.get("DALI_CONFIG_DIR")
    if override:
        return expanded(override, "DALI_CONFIG_DIR")
    if sys.platform == "win32":
        return user_folder("APPDATA", "AppData/Roaming") / "dali"
    if sys.platform == "darwin":
        return expanded("~/Library/Application Support/dali", "DALI_CONFIG_DIR")
    return user_folder("XDG_CONFIG_HOME", ".config") / "dali"


def own_path() -> Path:
    return config_root() / "machine.json"


def read() -> Profile:
    """The profile of this machine. UsageError: there is none. DaliError: it is of another, or broken."""
    path = own_path()
    if not os.path.exists(path):
        raise UsageError(
            f"This machine was never measured: there is no {path}.", "Measure it: `dali bench hw`."
        )
    return _of_here(Profile.from_file(path))


def find(notify: Callable[[str], None]) -> Profile | None:
    """The profile of this machine, if there is one that can be used; `notify` is told of one that cannot, and why."""
    try:
        path = own_path()
        if not path.exists():
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:  # a folder that nobody may look into
        notify(f"This machine's profile cannot be read ({error}). {AGAIN}")
        return None
    except DaliError as error:  # no home
        notify(f"This machine's profile is not looked for: {error.problem} {error.fix}")
        return None
    try:
        profile = Profile.from_json(text, str(path))
    except DaliError as error:
        notify(f"{error.problem} {_set_aside(path)} {AGAIN}")
        return None
    try:
        return _of_here(profile)
    except DaliError as error:
        notify(f"{error.problem} It is not used. {error.fix}")
        return None


def origin(profile: Profile) -> str:
    """Where its times come from, in a few words."""
    if profile.machine is None:
        return f"published figures ({profile.name})"
    return f"this machine, measured on {profile.date} by dali {profile.dali}"


def write(profile: Profile) -> None:
    """Keep it as this machine's: a whole file or none. DaliError: it cannot be."""
    path = own_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole.written(path) as file:
            file.write_text(profile.to_json(), encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable() -> None:
    """Make its folder. DaliError, before a minute is spent, where `write` could not write."""
    path = own_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.check_writable(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> DaliError:
    return DaliError(
        f"Cannot write {path} ({error.strerror or error}).",
        "Name a file in a writable folder (`dali bench hw --output FILE`; `dali run --profile FILE` goes by it), or set "
        "DALI_CONFIG_DIR to such a folder.",
    )


def _of_here(profile: Profile) -> Profile:
    """Without what is of a disk or a GPU that is no longer there. DaliError: it is another machine's."""
    measured = profile.machine
    if measured is None:
        raise DaliError(f"The profile {own_path()} does not say which machine was measured.", AGAIN)
    here = this_machine(cache_root())
    if other := differences(measured, here):
        raise DaliError(f"The profile {own_path()} is of another machine: {'; '.join(other)}.", AGAIN)
    return replace(
        profile, figures=_figures(profile, measured, here), tables=_tables(profile, measured, here)
    )


def _figures(profile: Profile, measured: Machine, here: Machine) -> dict[str, Figure]:
    gone: tuple[str, ...] = () if measured.disk == here.disk else (*DISK, *PLAIN)
    if measured.gpu != here.gpu:
        gone += (*ACCELERATOR, "link_contended")
    return {name: figure for name, figure in profile.figures.items() if name not in gone}


def _tables(profile: Profile, measured: Machine, here: Machine) -> tuple[Table, ...]:
    same = measured.gpu == here.gpu
    return tuple(table for table in profile.tables if same or table.device != "gpu")


def _set_aside(path: Path) -> str:
    aside = path.with_suffix(".broken.json")
    try:
        path.replace(aside)
    except OSError:
        return "It is not used."
    return f"It was set aside as {aside.name}."
