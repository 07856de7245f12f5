"""Ctrl-C arrives, whatever native code makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from dali.cli.interrupt import interruptible


@pytest.fixture(autouse=True)
def handler():
    """pytest's own is back after the test, and after each block that a test enters."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    assert signal.signal(signal.SIGINT, before) is before


def press_within_native_code() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None


def test_an_error_it_was_turned_into_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt), interruptible():
        press_within_native_code()


def test_one_that_got_lost_comes_in_the_end():
    with pytest.raises(KeyboardInterrupt), interruptible(), suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_errors_stay_what_they_are():
    with pytest.raises(ValueError, match="bad"), interruptible():
        raise ValueError("bad")


def test_an_inner_block_keeps_its_own():
    with interruptible(), suppress(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)


def test_where_it_is_ignored_it_stays_ignored(handler):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        assert signal.signal(signal.SIGINT, handler) is signal.SIG_IGN


FRAGILE = """
import os, signal
try:
    signal.raise_signal(signal.SIGINT)
except BaseException:
    os.abort()
"""


@pytest.mark.parametrize("words", [("run", "dali-tiny", "hello"), ("bench",), ("list",)])
def test_while_native_modules_are_imported_it_ends_the_process_at_once(tmp_path, words):
    """A stand-in for torch that, as modules bound by nanobind do, aborts if an exception comes through it."""
    (tmp_path / "torch.py").write_text(FRAGILE)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import sys; from dali.cli.main import main; sys.exit(main())", *words]
    run = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")
