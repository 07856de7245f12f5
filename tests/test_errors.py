"""How errors name what was asked for."""

from __future__ import annotations

import dataclasses
import io
import pickle
import re
import tokenize
from pathlib import Path

import pytest

from dali.cli import verbs
from dali.cli.flags.option import as_flag
from dali.devices.base import MisuseError, OutOfDeviceMemoryError
from dali.errors import DaliError, UsageError, parameter
from dali.options import LoadOptions

SOURCE = Path(__file__).parent.parent / "src" / "dali"
TEXTS = (
    f"{parameter('n_cpu_moe')} 3 leaves no room.",
    f"Give less {parameter('vram')}, or see `dali run --device cpu`.",
)


def test_python_sees_parameters_and_the_command_line_flags():
    error = DaliError(*TEXTS)
    assert str(error) == f"{error.problem}\n{error.fix}"
    assert str(error) == "n_cpu_moe 3 leaves no room.\nGive less vram, or see `dali run --device cpu`."
    assert error.told(as_flag) == (
        "--n-cpu-moe 3 leaves no room.",
        "Give less --vram, or see `dali run --device cpu`.",
    )


def test_only_what_is_said_to_be_a_parameter_becomes_a_flag():
    texts = ("The seed of n_cpu_moe is {vram} --ram.", "Give another policy.")
    assert DaliError(*texts).told(as_flag) == texts


def test_a_policy_of_the_library_is_a_system_of_the_command_line():
    assert DaliError(parameter("policy"), "").told(as_flag)[0] == "--system"


@pytest.mark.parametrize(
    "error",
    [DaliError(*TEXTS), UsageError(*TEXTS), OutOfDeviceMemoryError(*TEXTS), MisuseError("It was cut.")],
)
def test_another_process_can_hand_errors_back(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (str(back), back.problem, back.fix) == (str(error), error.problem, error.fix)
    assert back.told(as_flag) == error.told(as_flag)


def library() -> dict[Path, str]:
    files = (path for path in SOURCE.rglob("*.py") if "cli" not in path.relative_to(SOURCE).parts)
    return {path: path.read_text() for path in files}


def test_options_and_every_parameter_that_an_error_names_are_flags():
    flags = {f"--{name}" for name in verbs.options()}
    named = {name for text in library().values() for name in re.findall(r"\bparameter\([\"'](\w+)", text)}
    assert len(named) > 10
    assert {as_flag(name) for name in named} <= flags
    assert {as_flag(field.name) for field in dataclasses.fields(LoadOptions)} <= flags


def test_the_library_speaks_of_no_flag_outside_a_command_in_backquotes():
    flag = rf"(?<![\w-])--({'|'.join(verbs.options())})(?![\w-])"
    for path, text in library().items():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING and not token.string.endswith('"""'):
                said = re.sub(r"`[^`]*`|llama\.cpp's --[\w-]+|dali trace --import", "", token.string)
                assert not re.search(flag, said), f"{path.name}: {token.string}"
