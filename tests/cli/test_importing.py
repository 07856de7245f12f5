"""Around imports that take long."""

from __future__ import annotations

import gc
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from dali.cli.importing import importing


def test_garbage_is_left_for_later_and_ctrl_c_is_handed_back():
    before = signal.getsignal(signal.SIGINT)
    with suppress(ImportError), importing():
        assert not gc.isenabled()
        assert signal.getsignal(signal.SIGINT) is not before
        raise ImportError
    assert gc.isenabled()
    assert signal.getsignal(signal.SIGINT) is before


def test_who_collects_no_garbage_goes_on_without():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_thread_leaves_ctrl_c_as_it_is():
    def body():
        with importing():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(body).result() is signal.getsignal(signal.SIGINT)
