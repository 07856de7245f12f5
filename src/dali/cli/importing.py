"""Importing what takes seconds."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dali.cli.interrupt import INTERRUPTED
from dali.cli.terminal import passing_note


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of native and of large modules: Ctrl-C ends the process, and garbage is not looked for.

    Native modules do not expect an exception while they set themselves up: nanobind, which binds our kernels, then aborts the
    process; and there is nothing to undo yet. Hardly any of the objects that torch and transformers make is garbage, yet looking
    for it among them takes a fifth of the time.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        passing_note()
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may say what a signal does; in others it is the business of whoever started them.
    ours = before is not signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, end)
    collecting, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()  # nor later: what was imported stays
        if collecting:
            gc.enable()
        if ours:
            signal.signal(signal.SIGINT, before)
