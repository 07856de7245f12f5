"""How errors name what was asked for."""

from __future__ import annotations

import inspect

import dali
from dali.cli.options import OPTIONS
from dali.errors import PARAMETERS, DaliError

TEXTS = ("--n-cpu-moe 3 leaves no room: --cache-slots.", "Give less --vram, or see `dali run --device cpu`.")


def test_the_command_line_sees_flags_and_python_parameters():
    error = DaliError(*TEXTS)
    assert (error.problem, error.fix) == TEXTS
    assert (
        str(error)
        == "n_cpu_moe 3 leaves no room: --cache-slots.\nGive less vram, or see `dali run --device cpu`."
    )


def test_parameters_are_those_of_load_and_flags_too():
    there = inspect.signature(dali.load).parameters
    assert set(PARAMETERS) == set(there) - {"model", "meter", "notify"}
    assert set(PARAMETERS) <= {option.key for option in OPTIONS.values()}
