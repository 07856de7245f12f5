"""Ctrl-C that arrives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code: as if SIGINT had ended the process


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt if SIGINT comes in here, whatever has become of it on its way up.

    Native code may drop the one that Python raises, or end with an error of its own instead: safetensors then
    says that it cannot tell a tensor's shape.
    """
    pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as a shell wants it for what it runs in the background
        yield
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
