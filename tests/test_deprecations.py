"""A third party's deprecation fails no test, wherever it points; ours fail, wherever they point."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import dali
from deprecations import KINDS

SOURCE = "import warnings\ndef old(kind, stacklevel): warnings.warn('old is deprecated', kind, stacklevel=stacklevel)\n"
ROOT = Path(__file__).resolve().parent.parent


def module(name: str, path: Path) -> Callable[[type[Warning], int], None]:
    """The function `old` of a module, as Python sees it: by its name and its file."""
    names: dict[str, object] = {"__name__": name}
    exec(compile(SOURCE, str(path), "exec"), names)
    return names["old"]  # type: ignore[return-value]


PACKAGES = ROOT / ".venv" / "lib" / "python3.11" / "site-packages"
THEIRS = module("transformers.utils", PACKAGES / "transformers" / "utils.py")
OURS = {
    "dali": module("dali.engine.made_up", Path(dali.__file__).parent / "engine" / "made_up.py"),
    "dali, installed": module("dali.engine.made_up", PACKAGES / "dali" / "engine" / "made_up.py"),
    "a test": module("test_made_up", ROOT / "tests" / "test_made_up.py"),
    "a benchmark": module("made_up", ROOT / "benchmarks" / "made_up.py"),
}


@pytest.mark.parametrize("stacklevel", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_third_partys_fails_nothing(kind, stacklevel):
    with warnings.catch_warnings(record=True) as shown:  # the filters stay pyproject.toml's
        THEIRS(kind, stacklevel)
    assert [one.category for one in shown] == [kind]
    assert (shown[0].filename == __file__) == (stacklevel == 2)  # attributed as without us


@pytest.mark.parametrize("stacklevel", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("emitter", OURS)
def test_ours_fails(emitter, kind, stacklevel):
    with pytest.raises(kind, match="old is deprecated"):
        OURS[emitter](kind, stacklevel)


def test_ours_can_be_expected():
    with pytest.warns(FutureWarning, match="old is deprecated"):
        OURS["dali"](FutureWarning, 2)


def test_any_other_warning_of_a_third_party_fails():
    with pytest.raises(RuntimeWarning):
        THEIRS(RuntimeWarning, 1)
