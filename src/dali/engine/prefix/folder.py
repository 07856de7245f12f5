"""A folder of entries of the prefix cache: one file each, which may be deleted at any time, and which several processes share.

A file appears whole, under its name, or not at all. What cannot be written is lost; what cannot be read or is damaged counts as
missing. No answer is wrong for it, and none fails.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Condition, Thread

from dali.engine.prefix import entry_file
from dali.engine.prefix.names import PATTERN
from dali.errors import DaliError, UsageError, parameter, reason
from dali.step.kept import Kept
from dali.store.folders import expanded
from dali.units import size

MOST_WAITING = 256 << 20  # bytes to be written; what comes on top is lost
LOW = 0.9  # of the folder's limit that is left when it was reached
UNSEEN = 1 / 16  # of it that a process writes before it looks at what others have written
UNFINISHED, ABANDONED_S = (
    ".part",
    3600,
)  # how files that are being written end, and when nobody can be at it any more


class Folder:
    """Writes and reads entries; at most `limit` bytes of them, the least recently used go first."""

    def __init__(self, path: str, limit: int, notify: Callable[[str], None]) -> None:
        self.path, self.limit = path, limit
        self._notify = notify
        self._told: set[str] = set()
        self._waiting: dict[str, tuple[list[int], Kept]] = {}  # by name, to be written in order
        self._bytes = 0  # of those
        self._writing: str | None = None  # the entry that is being written
        self._changed = Condition()
        self._writer: Thread | None = None
        self._known_bytes: int | None = None  # of all files when they were last looked at
        self._since = 0  # bytes written since then

    def has(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.path, name))

    def expect(self, names: Iterable[str]) -> None:
        """These are read soon: let the device begin with all of them."""
        for name in names if hasattr(os, "posix_fadvise") else ():
            with suppress(OSError), open(os.path.join(self.path, name), "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, name: str, tokens: list[int]) -> Kept | None:
        """The entry of that name; None where there is none to be trusted. From any thread."""
        path = os.path.join(self.path, name)
        try:
            kept = entry_file.read(path, name, tokens)
            if kept is None:
                self._tell("damaged", f"{path} is damaged, and is left out.")
                os.unlink(path)
            else:
                with suppress(OSError):  # another user's
                    os.utime(path)
        except FileNotFoundError:  # another process has evicted it
            return None
        except OSError as error:
            self._tell(
                "read", f"{path} cannot be read ({error.strerror or error}): its tokens are computed again."
            )
            return None
        except MemoryError:
            return None
        return kept

    def use(self, names: Iterable[str]) -> None:
        """These serve, the last one longest."""
        for at, name in enumerate(names, time.time_ns()):  # the system's own times are milliseconds apart
            with suppress(OSError):  # not written yet, or not any longer
                os.utime(os.path.join(self.path, name), ns=(at, at))

    def write(self, name: str, tokens: list[int], kept: Kept) -> None:
        """Write an entry some time soon, unless it is there or too many wait."""
        if self.has(name):
            return
        with self._changed:
            if name in self._waiting or (self._waiting and self._bytes + kept.nbytes > MOST_WAITING):
                return
            self._waiting[name] = tokens, kept
            self._bytes += kept.nbytes
            self._start_writer()

    def remove(self, names: Iterable[str]) -> None:
        """Delete entries, and write none of them that waits."""
        names = set(names)
        with self._changed:
            for name in names & self._waiting.keys():
                self._bytes -= self._waiting.pop(name)[1].nbytes
            self._changed.wait_for(lambda: self._writing not in names)
        for name in names:
            with suppress(OSError):  # evicted, or another's
                os.unlink(os.path.join(self.path, name))

    def flush(self) -> None:
        """Wait until all is written."""
        with self._changed:
            if self._waiting:
                self._start_writer()
            self._changed.wait_for(lambda: not self._waiting and self._writing is None)

    def _start_writer(self) -> None:
        """Let a thread write what waits. No daemon: when the process ends, it waits for that."""
        if self._writer is None or not self._writer.is_alive():
            self._writer = Thread(target=self._write_all, name="dali-prefixes")
            self._writer.start()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._writer = None
                    return
                name = next(iter(self._waiting))
                tokens, kept = self._waiting.pop(name)
                self._bytes -= kept.nbytes
                self._writing = name
            try:
                self._write(name, entry_file.pieces(name, tokens, kept))
            except Exception as error:  # whatever it is, the answers need no disk
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                why = "there is no space left" if full else getattr(error, "strerror", None) or reason(error)
                message = (
                    f"Nothing can be kept in {self.path} ({why}); answers are the same, and begin later."
                )
                self._tell("write", message)
            finally:
                with self._changed:
                    self._writing = None
                    self._changed.notify_all()

    def _write(self, name: str, pieces: list[bytes | memoryview]) -> None:
        nbytes = sum(len(piece) for piece in pieces)
        if nbytes > self.limit:
            return
        self._make_room(nbytes)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=UNFINISHED, dir=self.path)
        try:
            with open(handle, "wb") as file:
                for piece in pieces:
                    file.write(piece)
            os.replace(temporary, os.path.join(self.path, name))
        except BaseException:
            os.unlink(temporary)
            raise
        self._since += nbytes

    def _make_room(self, nbytes: int) -> None:
        """Delete the least recently used where `nbytes` more would be too many, and what others left unfinished."""
        known, fresh = self._known_bytes, self._since <= UNSEEN * self.limit
        if known is not None and fresh and known + self._since + nbytes <= self.limit:
            return
        found, now = [], time.time()
        for entry in os.scandir(self.path):
            ours = PATTERN.fullmatch(entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
                if ours:
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
                elif _is_unfinished(entry.name) and now - status.st_mtime > ABANDONED_S:
                    os.unlink(entry.path)
            except FileNotFoundError:
                continue
        total = sum(each for _, each, _ in found)
        if total + nbytes > self.limit:
            for _, each, path in sorted(found):
                if total + nbytes <= LOW * self.limit:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= each
        self._known_bytes, self._since = total, 0

    def _tell(self, what: str, message: str) -> None:
        """Say it, once, whichever thread is first."""
        with self._changed:
            told = what in self._told
            self._told.add(what)
        if not told:
            self._notify(message)


def _is_unfinished(name: str) -> bool:
    return name.endswith(UNFINISHED) and PATTERN.match(name, 1) is not None


def prepare_folder(given: str | os.PathLike[str], limit: int) -> str:
    """The folder's path, made if it was not there. UsageError or DaliError where entries cannot be kept there."""
    name = parameter("cache_dir")
    path = expanded(given, name).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".dali.", suffix=UNFINISHED, dir=path):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{name} {path} is not a folder.", "Name a folder, there or to be made.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DaliError(
                f"There is no space left for {name} {path}, which may have {size(limit)}.",
                "Free some, name another folder, or leave it out.",
            ) from error
        raise DaliError(
            f"{name} {path} cannot be written ({error.strerror or error}).",
            "Make it writable, name another folder, or leave it out.",
        ) from error
    return str(path)
