"""From what the user calls a model to a directory with its files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from dali.errors import DaliError, UsageError
from dali.store.cache import cache_root

BUNDLED = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "dali-tiny"
FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]


def locate(model: str | os.PathLike[str] | None, offline: bool = False) -> Path:
    """The directory of `model`: a path, `org/name` on the Hugging Face hub, the name of a bundled or cached model, None
    for the bundled one. Downloads what is missing unless `offline`. UsageError or DaliError says what was wrong."""
    name = DEFAULT_MODEL if model is None else os.fspath(model)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{path} is not a model directory: it has no config.json.", "Give a directory with config.json and weights."
            )
        return path
    if path.suffix == ".gguf":
        raise UsageError(
            f"{path}: GGUF files cannot be read yet.", "Give a directory or an org/name with safetensors weights."
        )
    for folder in (BUNDLED, cache_root() / "models"):
        if "/" not in name and (folder / name / "config.json").is_file():
            return folder / name
    if re.fullmatch(r"[\w.-]+/[\w.-]+:[\w.-]+", name):
        raise UsageError(
            f"{name}: a quantization after the colon names a GGUF file, and GGUF files cannot be read yet.",
            f"Give {name.split(':')[0]} with safetensors weights, and --quant for the packed format.",
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise UsageError(
            f"No model called {name!r}: no such directory, and not an org/name.", "See `dali list` for the models found here."
        )
    return _from_hub(name, offline or huggingface_hub.constants.HF_HUB_OFFLINE)


def _from_hub(name: str, offline: bool) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        if offline:
            raise DaliError(
                f"{name} is not in the local Hugging Face cache, and dali is offline.",
                "Drop --offline (and HF_HUB_OFFLINE) to download it, or give a directory.",
            ) from error
        raise _unreachable(name, error) from error
    except GatedRepoError as error:
        raise DaliError(
            f"{name} is gated on the Hugging Face hub.", "Accept its licence on its page and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise DaliError(
            f"The Hugging Face hub has no model {name!r} (or you may not see it).", "Check the name; `hf auth login` for private ones."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> DaliError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DaliError(
        f"{name} is not here and could not be downloaded ({reason}).", "Check the connection, or give a directory."
    )
