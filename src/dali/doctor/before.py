"""What is said before a model is downloaded: its verdict in one line, or that it would be refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from dali.errors import DaliError, UsageError
from dali.hardware.gpu import check_gpu
from dali.loading.locate import Remote
from dali.options import LoadOptions
from dali.store.cache import cache_root
from dali.store.folders import existing
from dali.units import size

if TYPE_CHECKING:
    from dali.doctor.here import Here

MOMENT = 2.0  # seconds for which nothing is said of a hub that does not answer


def before_download(options: LoadOptions, notify: Callable[[str], None]) -> Callable[[Remote], None]:
    """What `locate` asks before it downloads. It raises what loading would, had the gigabytes come; where headers cannot be read,
    or do not tell, the download goes on."""

    def check(remote: Remote) -> None:
        from dali.doctor.examine import (  # as below: local models do without what this imports
            examine,
            read_remote,
        )
        from dali.doctor.here import device_of, look
        from dali.doctor.remote import scratch
        from dali.doctor.sizes import CannotTell
        from dali.doctor.verdict import of

        with ExitStack() as stack:
            try:
                folder = stack.enter_context(scratch())
                with _told_after(MOMENT, notify, remote):
                    outline, there = read_remote(remote, folder)
            except UsageError:
                raise
            except DaliError:
                return
            if options.device_kind == "cuda" and options.profile is None:
                check_gpu(
                    options.device
                )  # loading finds it a profile where nobody measured it, which is not told by headers
            here = look(options)
            if options.device_kind == "cuda" and options.profile is None and not here.profile.has_accelerator:
                return
            here = _beside(remote, there.nbytes, here)
            found = examine(outline, options, here, device_of(options, here.profile))
        if isinstance(found.refusal, CannotTell):
            return
        if found.refusal is not None:
            raise found.refusal.about(str(folder), remote.name)
        way = found.ways[0]
        notify(
            f"{remote}: {found.verdict.word}, {of(way.prediction.decode.expected)} tokens/s modelled, {way.name}; "
            f"{size(there.nbytes)} to download."
        )

    return check


@contextmanager
def _told_after(seconds: float, notify: Callable[[str], None], remote: Remote) -> Iterator[None]:
    """Say what is waited for, if that takes longer."""
    waits = f"Waiting for the Hugging Face hub, which has not told yet what {remote} is made of."
    timer = Timer(seconds, notify, [waits])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _beside(remote: Remote, nbytes: int, here: Here) -> Here:
    """This machine once so many bytes were downloaded. DaliError: its disk has no room for them."""
    import huggingface_hub.constants

    from dali.doctor.here import free_disk

    hub = Path(huggingface_hub.constants.HF_HUB_CACHE)
    blobs = hub / f"models--{remote.name.replace('/', '--')}" / "blobs"
    held = 0
    with suppress(OSError):  # of a file whose download was interrupted
        held = sum(file.stat().st_size for file in blobs.glob("*.incomplete"))
    wanted, free = max(nbytes - held, 0), free_disk(hub)
    if wanted > free:
        raise DaliError(
            f"{remote} takes {size(wanted)}, and {size(free)} are free where the Hugging Face cache lies.",
            "Free some, or set HF_HUB_CACHE to a folder on another disk.",
        )
    same = os.stat(existing(hub)).st_dev == os.stat(existing(cache_root())).st_dev
    disk = here.free.disk if here.free.disk is None or not same else max(here.free.disk - wanted, 0)
    return replace(here, free=here.free._replace(disk=disk))
