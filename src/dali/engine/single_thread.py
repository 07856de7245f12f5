"""torch on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_thread() -> Iterator[None]:
    """For operations so small that to wake a second thread (some 45 us, as idle ones sleep) would take most of the time.

    A thread that begins meanwhile keeps torch to one thread as well, so keep it short.
    """
    threads = torch.get_num_threads()
    if threads == 1:  # perhaps such a thread: what it would give back is not what the others had
        yield
        return
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
