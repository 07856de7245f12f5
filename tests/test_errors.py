"""How errors name what was asked for."""

from __future__ import annotations

import inspect
import pickle

import pytest

import dali
from dali.cli import verbs
from dali.devices.base import MisuseError, OutOfDeviceMemoryError
from dali.errors import PARAMETERS, DaliError, UsageError

TEXTS = ("--n-cpu-moe 3 leaves no room: --cache-slots.", "Give less --vram, or see `dali run --device cpu`.")


def test_the_command_line_sees_flags_and_python_parameters():
    error = DaliError(*TEXTS)
    assert (error.problem, error.fix) == TEXTS
    assert (
        str(error)
        == "n_cpu_moe 3 leaves no room: --cache-slots.\nGive less vram, or see `dali run --device cpu`."
    )


def test_names_inside_others_are_left_alone():
    text = "No model in hub/models--org--policy or a--seed.npz."
    assert str(DaliError(text, "Give another.")) == f"{text}\nGive another."


@pytest.mark.parametrize(
    "error",
    [DaliError(*TEXTS), UsageError(*TEXTS), OutOfDeviceMemoryError(*TEXTS), MisuseError("It was cut.")],
)
def test_another_process_can_hand_errors_back(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (str(back), back.problem, back.fix) == (str(error), error.problem, error.fix)


def test_parameters_are_those_of_load_and_flags_too():
    there = inspect.signature(dali.load).parameters
    assert set(PARAMETERS) == set(there) - {"model", "meter", "notify"}
    assert set(PARAMETERS) <= {name.replace("-", "_") for name in verbs.options()}
