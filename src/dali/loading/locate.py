"""From what the user calls a model to a directory with its files, or to a GGUF file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dali.errors import DaliError, UsageError, parameter, reason, unreadable
from dali.store.cache import cache_root

BUNDLED = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "dali-tiny"
FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
DUPLICATES = ["*/*", "consolidated*"]  # the same weights once more, in other layouts

MOST_NAMED = 8  # files, in an error


class Remote(NamedTuple):
    """A model on the Hugging Face hub: its repository, and of GGUF files which quantization."""

    name: str
    quant: str | None = None

    def __str__(self) -> str:
        return self.name if self.quant is None else f"{self.name}:{self.quant}"


def locate(
    model: str | os.PathLike[str] | None,
    offline: bool = False,
    before: Callable[[Remote], None] | None = None,
) -> Path:
    """The directory or the GGUF file of `model`: a path, `org/name` on the Hugging Face hub, `org/name:QUANT` for a GGUF file
    there (the first, if it is split), the name of a bundled or cached model, None for the bundled one. Downloads what is
    missing unless `offline`; `before` is told of what would be downloaded, and may refuse it. UsageError or DaliError says what
    was wrong.
    """
    found = find(model)
    if isinstance(found, Path):
        return found
    if before is not None and not offline and not is_cached(found):
        before(found)
    if found.quant is not None:
        return _gguf_from_hub(found.name, found.quant, offline)
    return _from_hub(found.name, offline)


def find(model: str | os.PathLike[str] | None) -> Path | Remote:
    """As `locate`, which does nothing yet about a model on the hub."""
    if model is None:
        return BUNDLED / DEFAULT_MODEL
    name = os.fspath(model)
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):  # os.path: False, not an error, for what no path can be
        return _in_directory(path)
    if os.path.isfile(path):
        if path.suffix.lower() == ".gguf" or _starts_as_gguf(path):
            return path
        raise UsageError(
            f"{path} is a file, and not a GGUF one.",
            "Give a .gguf file, or the directory that holds config.json and the weights.",
        )
    if (link := _linked(name)) is not None:
        return find(link)
    _check_reachable(path)
    if name and os.path.lexists(path):
        kind = (
            "is a link to what is not there" if os.path.islink(path) else "is neither a file nor a directory"
        )
        raise UsageError(
            f"{path} {kind}.", "Give a .gguf file, or the directory that holds config.json and the weights."
        )
    if path.suffix.lower() == ".gguf":
        raise UsageError(f"There is no file {path}.", "Check its name, or give org/name:QUANT.")
    for folder in (BUNDLED, cache_root() / "models"):
        if "/" not in name and os.path.isfile(folder / name / "config.json"):
            return _in_directory(folder / name)
    if match := re.fullmatch(r"([\w-][\w.-]*/[\w.-]+):([\w.-]+)", name):
        return Remote(match[1], match[2])
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise UsageError(
            f"No model called {name!r:.100}: no such directory, and not an org/name.",
            "See `dali list` for the models found here; those on the Hugging Face hub are called org/name, or org/name:QUANT for "
            "GGUF files.",
        )
    return Remote(name)


def is_cached(remote: Remote) -> bool:
    """Whether all files of a model are in the local Hugging Face cache, as far as they name each other."""
    import huggingface_hub.constants

    if (
        huggingface_hub.constants.HF_HUB_OFFLINE
    ):  # nothing can be downloaded, so nothing is to be asked before
        return True
    try:
        if remote.quant is not None:
            from dali.store.gguf.header import split_files

            return all(
                file.is_file()
                for file in split_files(_gguf_from_hub(remote.name, remote.quant, offline=True))
            )
        there = _from_hub(remote.name, offline=True)
        index = there / "model.safetensors.index.json"
        shards = (
            json.loads(index.read_bytes())["weight_map"].values()
            if index.is_file()
            else ["model.safetensors"]
        )
        return all((there / shard).is_file() for shard in set(shards))
    except (DaliError, OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _linked(name: str) -> str | None:
    """The model that a link to the Hugging Face hub leads to, as `locate` takes it; None for what is no such link."""
    link = re.fullmatch(
        r"(?:https?://)?(?:hf\.co|huggingface\.co)/([^/?#]+/[^/?#]+)(?:/([^?#]*))?(?:[?#].*)?", name
    )
    if link is None:
        return None
    file = Path(link[2] or "").name
    # The whole name: of two files, the end of one's may be that of the other's, too.
    return f"{link[1]}:{stem_of(file)}" if file.lower().endswith(".gguf") else link[1]


def _check_reachable(path: Path) -> None:
    """DaliError where folders on the way to `path` may not be looked into."""
    try:
        with suppress(FileNotFoundError, ValueError):
            os.stat(path)
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError:  # a loop of links, a name of too many letters
        return


def _in_directory(path: Path) -> Path:
    """The checkpoint or the one GGUF model that a directory holds."""
    try:
        files = [] if is_checkpoint(path) else gguf_models(path)
        has_config = (path / "config.json").is_file()
    except OSError as error:
        raise unreadable(error.filename or path, error) from error
    if len(files) == 1:
        return files[0]
    if not files and has_config:
        _check_spelling(path)
        return path
    found = ", ".join(str(file.relative_to(path)) for file in files[:MOST_NAMED])
    found += f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    raise UsageError(
        f"{path} holds {len(files)} GGUF models."
        if files
        else f"{path} is not a model directory: it has no config.json.",
        f"Give one of its files: {found}." if files else "Give a directory with config.json and weights.",
    )


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory holds safetensors weights of its own: people put config.json beside GGUF files, too."""
    names = os.listdir(directory)
    return "config.json" in names and any(
        name.endswith((".safetensors", ".safetensors.index.json")) for name in names
    )


def _check_spelling(directory: Path) -> None:
    """The libraries that read tokenizers and weights take names as UTF-8 alone."""
    try:
        os.path.abspath(directory).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(directory).decode(errors="replace")
        raise UsageError(
            f"The name of the directory {shown} is not UTF-8, and the libraries that read it take no other.",
            "Rename it, or give a link to it.",
        ) from error


def display_name(path: Path) -> str:
    """What people call the model at `path`, a directory or a GGUF file: org/name of one in the Hugging Face cache, a file without
    its number and suffix."""
    path = Path(os.path.abspath(path))  # "." has no name
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.stem) if path.is_file() else path.name


def gguf_models(directory: Path) -> list[Path]:
    """The GGUF models in a directory and those right below it, as the hub's quantizations are: the first file of each."""
    from dali.store.gguf.header import split_files  # and numpy, too slow to import for --help

    files = sorted(
        file
        for pattern in ("*.gguf", "*/*.gguf")
        for file in directory.glob(pattern)
        if not projects_images(file.name) and file.is_file()
    )
    return [file for file in files if split_files(file)[0] == file]


def stem_of(name: str) -> str:
    """A GGUF file's name without its number and suffix."""
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", name, flags=re.IGNORECASE)


def quant_of(name: str) -> str:
    """The quantization that a GGUF file's name ends in, its number and suffix apart."""
    return re.split(r"[-./]", stem_of(name))[-1]


def projects_images(name: str) -> bool:
    """Whether a GGUF file is no model but what turns images into tokens of one, by its name, as for llama.cpp."""
    return "mmproj" in name.rpartition("/")[2].lower()


def _starts_as_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise unreadable(path, error) from error


def _gguf_from_hub(name: str, quant: str, offline: bool) -> Path:
    """The first file of the GGUF model whose name ends in `quant`; the shortest name of several."""
    import huggingface_hub.constants  # here as below, since local models do without its tenth of a second

    offline = offline or huggingface_hub.constants.HF_HUB_OFFLINE
    with hub_errors(name, offline):
        listed, where = _files(name, offline)
    files = files_of_quant(listed, name, quant, where)
    with hub_errors(name, offline):
        path = huggingface_hub.snapshot_download(name, allow_patterns=files, local_files_only=offline)
    return Path(path) / files[0]


def models_of(listed: Iterable[str]) -> dict[str, list[str]]:
    """Of a repository's files those of GGUF models: stem -> files, in order."""
    models: dict[str, list[str]] = {}
    for file in sorted(listed):
        if file.lower().endswith(".gguf") and not projects_images(file):
            models.setdefault(stem_of(file), []).append(file)
    return models


def files_of_quant(listed: Iterable[str], name: str, quant: str, where: str) -> list[str]:
    """The files of the GGUF model whose name ends in `quant`, the first one first. UsageError: there is none `where` they are."""
    models = models_of(listed)
    wanted = [stem for stem in models if re.search(rf"(^|[-./]){re.escape(quant)}$", stem, re.IGNORECASE)]
    if not wanted:
        known = ", ".join(sorted({quant_of(stem) for stem in models}))
        raise UsageError(
            f"{name} has no GGUF file for {quant!r} {where}.",
            f"It has {known}."
            if known
            else "It has no GGUF files; leave out the colon for safetensors weights.",
        )
    return models[min(wanted, key=len)]


def _files(name: str, offline: bool) -> tuple[list[str], str]:
    """What there is of a repository, and where: on the hub, or if that cannot be reached in the cache."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    def cached() -> tuple[list[str], str]:
        there = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        files = [str(file.relative_to(there)) for file in there.rglob("*.gguf")]
        return files, "in the local Hugging Face cache"

    if offline:
        return cached()
    try:  # in one request; list_repo_files retries for half a minute
        files = [file.rfilename for file in huggingface_hub.model_info(name).siblings or ()]
    except (HFValidationError, RepositoryNotFoundError):  # gated ones included
        raise
    except Exception:
        with suppress(LocalEntryNotFoundError):
            return cached()
        raise
    return files, "on the Hugging Face hub"


def _from_hub(name: str, offline: bool) -> Path:
    import huggingface_hub.constants

    offline = offline or huggingface_hub.constants.HF_HUB_OFFLINE
    with hub_errors(name, offline):
        path = huggingface_hub.snapshot_download(
            name, allow_patterns=FILES, ignore_patterns=DUPLICATES, local_files_only=offline
        )
    if not is_checkpoint(Path(path)):
        files: list[str] = []
        with suppress(Exception):  # what else there is only makes the error more helpful
            files, _ = _files(name, offline)
        if quants := sorted({quant_of(stem) for stem in models_of(files)}):
            raise UsageError(
                f"{name} holds GGUF files, and no safetensors weights.",
                f"Name a quantization, as in {name}:{quants[0]}; it has {', '.join(quants)}.",
            )
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise DaliError(
            f"{name} has no config.json here: its download was interrupted, or it holds no such model.",
            "Load it once with a connection, or pick another.",
        )
    return Path(path)


@contextmanager
def hub_errors(name: str, offline: bool) -> Iterator[None]:
    """What the hub's library raises, as a DaliError that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except DaliError:
        raise
    except HFValidationError as error:
        raise UsageError(f"{name!r} names no model on the Hugging Face hub.", reason(error)) from error
    except LocalEntryNotFoundError as error:
        if offline:
            raise DaliError(
                f"{name} is not in the local Hugging Face cache, and dali is offline.",
                f"Drop {parameter('offline')} (and HF_HUB_OFFLINE) to download it, or give a directory.",
            ) from error
        cause = error.__cause__ or error  # its own words are a paragraph of advice
        raise _unreachable(name, cause) from error
    except GatedRepoError as error:
        raise DaliError(
            f"{name} is gated on the Hugging Face hub.",
            "Accept its licence on its page and log in with `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise DaliError(
            f"The Hugging Face hub has no model {name!r} (or you may not see it).",
            "Check the name; `hf auth login` for private ones.",
        ) from error
    except Exception as error:  # of the disk, or of whichever library made the connection
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: BaseException) -> DaliError:
    return DaliError(
        f"{name} is not here and could not be downloaded ({reason(error)}).",
        "Check the connection, or give a directory or a .gguf file.",
    )
