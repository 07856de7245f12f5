"""From what the user calls a model to a directory with its files."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from dali.errors import DaliError, UsageError
from dali.store.cache import cache_root

BUNDLED = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "dali-tiny"
FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
DUPLICATES = ["*/*", "consolidated*"]  # the same weights once more, in other layouts


def locate(model: str | os.PathLike[str] | None, offline: bool = False) -> Path:
    """The directory of `model`: a path, `org/name` on the Hugging Face hub, the name of a bundled or cached
    model, None for the bundled one. Downloads what is missing unless `offline`. UsageError or DaliError says
    what was wrong.
    """
    if model is None:
        return BUNDLED / DEFAULT_MODEL
    name = os.fspath(model)
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):  # os.path: False, not an error, for what no path can be
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{path} is not a model directory: it has no config.json.",
                "Give a directory with config.json and weights.",
            )
        return path
    if path.suffix.lower() == ".gguf":
        raise UsageError(
            f"{path}: GGUF files cannot be read yet.",
            "Give a directory or an org/name with safetensors weights.",
        )
    if os.path.isfile(path):
        raise UsageError(f"{path} is a file.", "Give the directory that holds config.json and the weights.")
    for folder in (BUNDLED, cache_root() / "models"):
        if "/" not in name and os.path.isfile(folder / name / "config.json"):
            return folder / name
    if re.fullmatch(r"[\w.-]+/[\w.-]+:[\w.-]+", name):
        raise UsageError(
            f"{name}: a quantization after the colon names a GGUF file, and GGUF files cannot be read yet.",
            f"Give {name.split(':')[0]} with safetensors weights, and --quant for the packed format.",
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise UsageError(
            f"No model called {name!r}: no such directory, and not an org/name.",
            "See `dali list` for the models found here.",
        )
    return _from_hub(name, offline or huggingface_hub.constants.HF_HUB_OFFLINE)


def _from_hub(name: str, offline: bool) -> Path:
    try:
        path = huggingface_hub.snapshot_download(
            name, allow_patterns=FILES, ignore_patterns=DUPLICATES, local_files_only=offline
        )
    except HFValidationError as error:
        raise UsageError(f"{name!r} names no model on the Hugging Face hub.", reason(error)) from error
    except LocalEntryNotFoundError as error:
        if offline:
            raise DaliError(
                f"{name} is not in the local Hugging Face cache, and dali is offline.",
                "Drop --offline (and HF_HUB_OFFLINE) to download it, or give a directory.",
            ) from error
        raise _unreachable(name, error) from error
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
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise DaliError(
            f"{name} has no config.json here: its download was interrupted, or it holds no such model.",
            "Load it once with a connection, or pick a repository with safetensors weights (not GGUF).",
        )
    return Path(path)


def _unreachable(name: str, error: Exception) -> DaliError:
    return DaliError(
        f"{name} is not here and could not be downloaded ({reason(error)}).",
        "Check the connection, or give a directory.",
    )


def reason(error: Exception) -> str:
    """What another library's exception says, on one line."""
    return textwrap.shorten(str(error), 250) or type(error).__name__
