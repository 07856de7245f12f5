"""Entries on their way from disk to RAM, while others are computed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from dali.engine.prefix.folder import Folder
from dali.step.kept import Kept

AT_ONCE = 2  # files; more would take the processor from those that are computed, and the device knows of all

Read = Mapping[str, Kept | None]


class Reading:
    """What one sequence waits for. It holds no more than that sequence goes on from."""

    def __init__(self, folder: Folder | None) -> None:
        self.read: dict[str, Kept | None] = {}  # by name; None: gone, or not to be trusted
        self._folder = folder
        self._under_way: dict[str, Future[Kept | None]] = {}

    @property
    def under_way(self) -> bool:
        return bool(self._under_way)

    def begin(self, files: Mapping[str, list[int]]) -> None:
        """Read these, by name, with the tokens that each has."""
        assert self._folder is not None
        readers = ThreadPoolExecutor(AT_ONCE, "dali-entries")
        readers.submit(self._folder.expect, [*files])
        self._under_way = {
            name: readers.submit(self._folder.read, name, tokens) for name, tokens in files.items()
        }
        readers.shutdown(wait=False)  # they end when they have nothing more to read

    def wait(self, seconds: float = 0.0) -> bool:
        """Whether all is there within so many seconds; from then on `read` has it."""
        if wait(self._under_way.values(), seconds).not_done:
            return False
        done, self._under_way = self._under_way, {}  # what fails may be tried again
        self.read |= {name: future.result() for name, future in done.items()}
        return True

    def stop(self) -> None:
        """Begin with no further file."""
        for future in self._under_way.values():
            future.cancel()
        self._under_way = {}
