"""`dali list`: the models found here, and whether they run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dali.cli.flags.always import Always
from dali.cli.flags.option import SWITCH, as_flag, flag
from dali.cli.flags.verb import Verb
from dali.cli.importing import importing
from dali.cli.terminal import log, passing_note
from dali.errors import DaliError
from dali.loading.locate import (
    BUNDLED,
    files_of_quant,
    gguf_models,
    is_checkpoint,
    quant_of,
    stem_of,
)
from dali.store.cache import cache_root
from dali.store.gguf.header import split_files
from dali.units import size

if TYPE_CHECKING:
    from dali.loading.source import ModelSource
    from dali.store.experts_module import ExpertsModule


@dataclass(frozen=True)
class Settings(Always):
    json: bool = flag("output", SWITCH, "for machines", variable="DALI_LIST_JSON")


VERB = Verb(
    "list",
    "The models that ship inside, those in dali's cache and in the Hugging Face cache, and the GGUF files of the current folder: "
    "what `dali run` calls them, and whether they run on this machine.",
    Settings,
    headings=("output",),
)


@dataclass
class Listing:
    """One model: what is known of it, and what keeps it from running."""

    name: str
    path: str
    bytes: int
    family: str | None = None
    experts: int | None = None  # a layer
    top_k: int | None = None
    moe_layers: int | None = None
    quant: str | None = None  # what `--quant auto` would pack the experts to
    from_disk: bool = False  # whether RAM cannot hold them all now
    obstacle: str | None = None  # in a few words
    problem: str | None = None  # as `dali run` says it


def main(settings: Settings) -> int:
    passing_note("Looking at the models ...")
    listings = [_examine(name, path) for name, path in sorted(_found())]
    passing_note()
    if settings.json:
        print(
            json.dumps(
                [asdict(listing) | {"runs": listing.obstacle is None} for listing in listings], indent=2
            )
        )
        return 0
    rows = [("NAME", "FAMILY", "EXPERTS", "TOP-K", "MOE LAYERS", "SIZE", "RUNS"), *map(_row, listings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:], strict=False)]
        print("  ".join([*left, *right, row[-1]]))
    log.info("Models elsewhere run by their path, a GGUF file or a directory: `dali run PATH`.")
    return 0


def _row(listing: Listing) -> tuple[str, ...]:
    counts = (listing.experts, listing.top_k, listing.moe_layers)
    where = " from disk" if listing.from_disk else ""
    runs = f"no: {listing.obstacle}" if listing.obstacle else f"yes, as {listing.quant}{where}"
    numbers = ("-" if count is None else str(count) for count in counts)
    return (listing.name, listing.family or "-", *numbers, size(listing.bytes), runs)


def _found() -> Iterator[tuple[str, Path]]:
    """(what `dali run` calls it, directory or GGUF file) of each model."""
    import huggingface_hub.constants
    from huggingface_hub.errors import CacheNotFound

    local = {folder.name: folder for root in (cache_root() / "models", BUNDLED) for folder in root.glob("*/")}
    for name, folder in local.items():
        files = _gguf_files(folder)
        yield from ((str(file), file) for file in files)
        if not files:
            yield name, folder
    yield from ((str(file), file) for file in gguf_models(Path()))
    try:
        cache = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):
        return
    except OSError as error:
        log.info(f"The Hugging Face cache is left out: {error.filename} cannot be read ({error.strerror}).")
        return
    for repository in cache.repos:
        main = repository.refs.get("main")
        if repository.repo_type == "model" and main:
            files = gguf_models(main.snapshot_path)
            yield from ((f"{repository.repo_id}:{name}", file) for name, file in _by_quant(files).items())
            if not files or not _gguf_files(main.snapshot_path):
                yield repository.repo_id, main.snapshot_path


def _by_quant(files: list[Path]) -> dict[str, Path]:
    """Each file by its quantization, where that leads to it; else, where others end in the same, by its whole name."""
    names = [str(file) for file in files]
    found = {}
    for file in files:
        quant = quant_of(file.name)
        mine = files_of_quant(names, "", quant, "")[0] == str(file)
        found[quant if mine else stem_of(file.name)] = file
    return found


def _gguf_files(folder: Path) -> list[Path]:
    """The GGUF models of a folder that is no model itself; none where it may not be looked into, which examining it tells."""
    try:
        return [] if is_checkpoint(folder) else gguf_models(folder)
    except OSError:
        return []


def _size(path: Path) -> int:
    """Bytes of the model's files, those that may be looked at."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else split_files(path):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _examine(name: str, path: Path) -> Listing:
    """Take the steps that loading takes before it reads weights; the first that fails is the obstacle."""
    listing = Listing(name, str(path), _size(path))
    steps = _directory_steps(listing, path) if path.is_dir() else _gguf_steps(listing, path)
    obstacle = "unreadable"
    try:
        for obstacle in steps:
            log.debug("%s: next, %s?", name, obstacle)
    except Exception as error:  # whatever it is, the other models are still to be listed
        listing.obstacle = obstacle
        listing.problem = (
            error.told(as_flag)[0] if isinstance(error, DaliError) else f"{type(error).__name__}: {error}"
        )
        log.debug("%s: %s", name, listing.problem)
    return listing


def _directory_steps(listing: Listing, directory: Path) -> Iterator[str]:
    """Fills `listing`; yields before each step what it means if that fails."""
    config_file = directory / "config.json"
    yield (
        "unreadable config.json"
        if os.path.lexists(config_file) or not os.access(directory, os.X_OK)
        else "no config.json"
    )
    raw = json.loads(config_file.read_bytes())
    listing.family = raw.get("model_type")
    yield "quantized checkpoint" if "quantization_config" in raw else "unknown model type"
    with importing():
        from dali.hooks import seam
        from dali.loading.safetensors import SafetensorsModel

    source = SafetensorsModel(directory)
    _ = source.config
    yield "not a language model"
    skeleton = source.skeleton
    yield "experts of an unsupported kind" if seam.experts_modules(skeleton) else "dense model"
    seam.describe_model(skeleton, listing.name)
    yield "unsupported layers"
    _count(listing, source.modules, source.calls.top_k)
    yield "incomplete download"
    if not source.checkpoint.location:
        raise DaliError(f"{directory} holds no weights.", "Download it again.")
    yield from _last_steps(listing, source)


def _gguf_steps(listing: Listing, path: Path) -> Iterator[str]:
    """As `_directory_steps`."""
    with importing():
        from dali.loading.gguf.families import family_of
        from dali.loading.gguf.model import GgufModel

    source = GgufModel(path)
    yield "unreadable GGUF file"
    gguf = source.gguf
    yield "dense model, or of an unknown kind"
    listing.family = family_of(gguf).model_type
    yield "quantized in a type that dali lacks"
    gguf.check_types()
    yield "damaged GGUF file"
    _ = source.dense
    _count(listing, source.modules, source.calls.top_k)
    yield "unknown tokenizer"
    yield from _last_steps(listing, source)


def _last_steps(listing: Listing, source: ModelSource) -> Iterator[str]:
    """Those that are the same for every source."""
    _ = source.tokenizer
    yield "too large for the free memory"
    from dali.kernels import native
    from dali.loading.on_disk import fit
    from dali.options import LoadOptions

    compiled = native.enabled()
    dtype = source.dtype("auto", compiled)
    layouts, disk = fit(
        lambda ram: source.layouts("auto", dtype, ram, compiled),
        source.name,
        LoadOptions(),
        compiled,
        source.calls,
        source.skeleton,
        dtype,
    )
    listing.quant = ", ".join(dict.fromkeys(layout.format_name for layout in layouts))
    listing.from_disk = disk is not None


def _count(listing: Listing, modules: list[ExpertsModule], top_k: int) -> None:
    listing.experts, listing.moe_layers, listing.top_k = modules[0].experts, len(modules), top_k
