"""What is said before a model is downloaded: its verdict in one line, or that it would be refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from dali.doctor.examine import examine, read_remote
from dali.doctor.here import device_of, free_disk, look
from dali.doctor.verdict import of
from dali.errors import DaliError, UsageError
from dali.loading.locate import Remote
from dali.options import LoadOptions
from dali.units import size


def before_download(options: LoadOptions, notify: Callable[[str], None]) -> Callable[[Remote], None]:
    """What `locate` asks before it downloads. It raises what loading would, had the gigabytes come; where headers cannot be read,
    the download is left to say why."""

    def check(remote: Remote) -> None:
        import huggingface_hub.constants

        with tempfile.TemporaryDirectory() as folder:
            try:
                outline, there = read_remote(remote, Path(folder))
            except UsageError:
                raise
            except DaliError:
                return
            free = free_disk(Path(huggingface_hub.constants.HF_HUB_CACHE))
            if there.nbytes > free:
                raise DaliError(
                    f"{remote} takes {size(there.nbytes)}, and {size(free)} are free where the Hugging Face cache lies.",
                    "Free some, or set HF_HOME to a folder on another disk.",
                )
            here = look(options)
            device = device_of(options, here.profile)
            found = examine(outline, options, here, device)
        if found.refusal is not None:
            raise found.refusal.about(folder, remote.name)
        way = found.ways[0]
        notify(
            f"{remote}: {found.verdict.word}, {of(way.prediction.decode.expected)} tokens/s modelled, {way.name}; "
            f"{size(there.nbytes)} to download."
        )

    return check
