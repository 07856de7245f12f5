"""The command itself: verbs, exit codes, and what an error looks like."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import dali
from dali.cli import list as list_verb
from dali.cli.main import VERBS, main
from dali.errors import DaliError
from dali.replay.traces.trace import write
from replay.tiny_traces import random_trace


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dali", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def failing_with(error: BaseException):
    def main(settings: SimpleNamespace) -> int:
        raise error

    return main


def test_version_and_help_as_a_user_calls_them():
    version = command("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"dali {dali.__version__}\n", "")
    assert command().stdout == command("--help").stdout
    verb = command("run", "--help")
    assert verb.returncode == 0
    told = " ".join(verb.stdout.split())
    assert (
        "--temp T temperature; 0 always takes the likeliest token (default: the model's, or else 0.8)" in told
    )
    assert "GGUF file" in told
    assert "org/name:Q4_K_M" in told
    assert "--ctx-size N tokens a conversation may have (default, and 0: all the model can)" in told


def imported_by(*arguments: str) -> set[str]:
    """Which of the packages that take long a command line imports, in a process of its own."""
    code = f"""
import sys
from dali.cli.main import main
try:
    main({list(arguments)})
except SystemExit:
    pass
print("imported:", *{{"torch", "transformers", "huggingface_hub"}} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        *([verb, "--help"] for verb in VERBS),
        ["run", "--list-policies"],
        ["jog"],
        ["list", "--frob"],
        ["run", "--temp", "hot"],
        ["run", "--quant", "q5"],
        ["run", "no-such-model", "hi"],
        ["run", "dali-tiny", ""],
        ["run", "dali-tiny", "hi", "--chat-template", "{{ x("],
        ["run", "dali-tiny", "hi", "--threads", "100000"],
        ["run", "dali-tiny", "hi", "--ctx-size", "100000"],
        ["run", "dali-tiny", "hi", "--system", "lru"],
        ["run", "dali-tiny", "hi", "--device", "sim:paper", "--lossy"],
        ["bench", "--threads", "100000"],
        ["bench", "--ctx-size", "100000"],
        ["trace", "--ctx-size", "100000", "-o", "no/such/folder.npz"],
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments):
    assert imported_by(*arguments) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_without_torch(refused):
    assert refused("run", "dali-tiny", "hi", "--device", "cuda")[1].startswith("Device 'cuda' was asked for")
    assert imported_by("run", "dali-tiny", "hi", "--device", "cuda") == set()


def test_replaying_needs_no_torch(tmp_path):
    write(tmp_path / "tiny.npz", random_trace(answer=20))
    page = tmp_path / "tiny.html"
    assert imported_by("simulate", str(tmp_path / "tiny.npz"), "--html", str(page)) == set()
    assert page.exists()


def test_the_package_offers_its_engine():
    assert {"load", "attach", "LLM"} <= set(dir(dali))
    assert (dali.load.__module__, dali.LLM.__module__) == ("dali.entry", "dali.llm")
    with pytest.raises(AttributeError, match="nothing"):
        dali.nothing  # noqa: B018


def test_help_names_every_verb(run, capsys):
    with pytest.raises(SystemExit) as done:
        run()
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_unknown_verb_lists_the_known_ones(refused):
    code, problem, fix = refused("jog")
    assert code == 2
    assert "jog" in problem
    assert all(verb in fix for verb in VERBS)


@pytest.mark.parametrize(
    "arguments", [["--frob"], ["run", "--frob"], ["list", "--frob"], ["list", "word"], ["run", "--temp"]]
)
def test_an_unknown_or_unfinished_flag_is_refused(refused, arguments):
    code, problem, fix = refused(*arguments)
    assert code == 2
    assert arguments[-1] in problem
    assert "--help" in fix


@pytest.mark.parametrize("verbose", [False, True])
def test_a_failure_shows_its_traceback_only_when_asked(run, monkeypatch, verbose):
    monkeypatch.setattr(list_verb, "main", failing_with(DaliError("The disk is full.", "Free some space.")))
    code, _, err = run("list", *["-v"] * verbose)
    assert code == 1
    assert err.endswith("error: The disk is full.\nFree some space.\n")
    assert ("Traceback" in err) is verbose


def test_a_bug_is_reported_as_one(refused, monkeypatch):
    monkeypatch.setattr(list_verb, "main", failing_with(ZeroDivisionError("division by zero")))
    code, problem, fix = refused("list")
    assert code == 1
    assert problem == "dali failed with an unexpected ZeroDivisionError (division by zero)."
    assert "report" in fix


def test_letters_the_terminal_lacks_do_not_stop_an_answer(monkeypatch):
    monkeypatch.setattr(list_verb, "main", lambda settings: print("caf\u00e9") or 0)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["list"]) == 0
    assert sys.stdout.buffer.getvalue() == b"caf?\n"


def test_ctrl_c_is_quiet(run, monkeypatch):
    monkeypatch.setattr(list_verb, "main", failing_with(KeyboardInterrupt()))
    assert run("list") == (130, "", "")
