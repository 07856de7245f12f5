"""The outline of a model on the Hugging Face hub, by range requests for its headers alone.

What is read is written into files of the true sizes, with nothing behind their headers, so that they take no space. They are
then examined as any local ones.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dali.doctor.outline import INDEX, LONGEST_HEADER, SINGLE, header_length
from dali.errors import DaliError, UsageError
from dali.loading.locate import DUPLICATES, Remote, files_of_quant, hub_errors, models_of, quant_of
from dali.store.gguf.extent import header_extent
from dali.units import size

FIRST = 2**17  # bytes: of most headers of safetensors files all
FIRST_OF_GGUF = 2**20
LONGEST_OF_GGUF = 2**28
AT_ONCE = 16  # requests
PATIENCE = 10.0  # seconds without a byte
DEADLINE = 60.0  # seconds of a model


class Outlined(NamedTuple):
    """Where the outline lies, what a download has to fetch, and of a repository of GGUF files each quantization's bytes."""

    path: Path
    nbytes: int
    quants: dict[str, int]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for an outline, for a while. DaliError: there is no place for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="dali-doctor-")
    except OSError as error:
        raise DaliError(
            f"Headers have no place to be looked at ({error.strerror or error}).",
            "Set TMPDIR to a folder that can be written.",
        ) from error
    with folder as name:
        yield Path(name)


def fetch_outline(remote: Remote, folder: Path) -> Outlined:
    """Into `folder`, which must be empty. DaliError: the hub cannot be reached, has no such model, or no ranges of its files."""
    with hub_errors(remote.name, False):
        return _Hub(remote.name).outline(remote.quant, folder)


class _Hub:
    """One repository."""

    def __init__(self, name: str) -> None:
        import huggingface_hub

        self.name = name
        self._ends = time.monotonic() + DEADLINE
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True, timeout=PATIENCE)
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
        # None that would be written beside the folder.
        self.files = {file: size for file, size in sizes.items() if not {"..", "/"} & {*Path(file).parts}}
        utils: Any = import_module("huggingface_hub.utils")
        self._check = utils.hf_raise_for_status
        self._session = utils.get_session()
        self._headers = utils.build_hf_headers()

    def outline(self, quant: str | None, folder: Path) -> Outlined:
        where = "on the Hugging Face hub"
        quants = {
            each: sum(self.files[file] for file in files_of_quant(self.files, self.name, each, where))
            for each in sorted({quant_of(stem) for stem in models_of(self.files)})
        }
        if quant is not None:
            files = files_of_quant(self.files, self.name, quant, where)
            self._each(self._gguf, files, folder)
            return Outlined(folder / files[0], self._missing(files), quants)
        shards = [
            file
            for file in self.files
            if file.endswith(".safetensors") and not any(fnmatch(file, one) for one in DUPLICATES)
        ]
        if not shards and quants:
            raise UsageError(
                f"{self.name} holds GGUF files, and no safetensors weights.",
                f"Name a quantization, as in {self.name}:{min(quants)}; it has {', '.join(sorted(quants))}.",
            )
        needed = ["config.json"] if SINGLE in shards else ["config.json", INDEX]
        if not shards or not self.files.keys() >= {*needed}:
            lacks = next(file for file in needed if file not in self.files) if shards else "weights"
            raise UsageError(
                f"{self.name} is not a model that dali can load: it has no {lacks}.", "Pick another."
            )
        if SINGLE in shards:
            shards = [SINGLE]
        self._each(self._whole, ["config.json"], folder)
        self._each(self._shard, shards, folder)
        if SINGLE not in shards:
            (folder / INDEX).write_text(json.dumps({"weight_map": {shard: shard for shard in shards}}))
        wanted = [file for file in self.files if file in shards or file.endswith((".json", ".txt"))]
        return Outlined(folder, self._missing(wanted), quants)

    def _missing(self, files: Iterable[str]) -> int:
        """Bytes of those that the Hugging Face cache lacks."""
        from huggingface_hub import try_to_load_from_cache

        there = (file for file in files if not isinstance(try_to_load_from_cache(self.name, file), str))
        return sum(self.files[file] for file in there)

    def _each(self, read: Any, files: Iterable[str], folder: Path) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [pool.submit(read, file, folder) for file in files]
            try:
                for one in waiting:
                    one.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _whole(self, file: str, folder: Path) -> None:
        (folder / file).write_bytes(self._range(file, 0, max(self.files[file], 1)))

    def _shard(self, file: str, folder: Path) -> None:
        start = self._range(file, 0, FIRST)
        length = header_length(start)
        if length is None or length > self.files[file]:
            raise DaliError(
                f"The weight file {self.name}/{file} is damaged (its header would take more than {size(LONGEST_HEADER)}, or than "
                "the file has).",
                "Pick another model, or tell whoever published it.",
            )
        if length > len(start):
            start += self._range(file, len(start), length)
        self._write(folder / file, start[:length], self.files[file])

    def _gguf(self, file: str, folder: Path) -> None:
        data, total = bytearray(), self.files[file]

        def read(wanted: int) -> bytearray:
            """At least so many bytes from the beginning, or all."""
            while len(data) < min(wanted, total):
                end = min(max(wanted, 2 * len(data), FIRST_OF_GGUF), total, LONGEST_OF_GGUF)
                if end <= len(data):
                    raise DaliError(
                        f"The header of {self.name}/{file} takes more than {size(LONGEST_OF_GGUF)}, which no model's does.",
                        "Pick another file.",
                    )
                data.extend(self._range(file, len(data), end))
            return data

        length = header_extent(read, total)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, bytes(data[:length]), total)

    @staticmethod
    def _write(path: Path, start: bytes, total: int) -> None:
        """A file of so many bytes, of which only the first take space."""
        with path.open("wb") as out:
            out.write(start)
            out.truncate(max(total, len(start)))

    def _range(self, file: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a file, fewer where it ends before."""
        import huggingface_hub

        end = min(end, max(self.files[file], begin + 1))
        url = huggingface_hub.hf_hub_url(self.name, file, endpoint=huggingface_hub.constants.ENDPOINT)
        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        found = bytearray()
        with self._session.stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=PATIENCE
        ) as response:
            self._check(response)
            whole = response.status_code == 200 and begin == 0 and end >= self.files[file]
            if response.status_code != 206 and not whole:
                raise DaliError(
                    f"{self.name} cannot be examined before it is downloaded: its server sends no parts of files.",
                    "Download it with `dali run`, or examine a directory.",
                )
            for piece in response.iter_bytes():
                found += piece
                if len(found) >= end - begin:
                    break
                if time.monotonic() > self._ends:
                    raise DaliError(
                        f"The server of {self.name} is too slow: its headers took more than {DEADLINE:.0f} seconds.",
                        "Try again later, or download the model with `dali run`.",
                    )
        if len(found) < end - begin:
            raise DaliError(
                f"{self.name}/{file} ended after {begin + len(found)} bytes, and the hub says that it has {self.files[file]}.",
                "Try again later.",
            )
        return bytes(found[: end - begin])
