"""Sizes as people read and write them."""

from __future__ import annotations

from dali.errors import UsageError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_UNITS |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "tb": 10**12, "tib": 2**40}


def parse_size(text: str) -> int:
    """ "8GiB", "500MB", "2g" -> bytes. UsageError for anything else."""
    number = text.strip().rstrip("BKMGTIbkmgti")
    unit = text.strip()[len(number) :].lower()
    try:
        size = float(number) * _UNITS[unit]
        if not 0 <= size < 2**63:
            raise ValueError
    except (ValueError, KeyError):
        raise UsageError(f"{text!r} is not a size.", "Write it like 8GiB, 500MB or 0.") from None
    return int(size)


def enough(nbytes: int) -> str:
    """The least size that is no smaller, as `parse_size` reads it: in whole GiB or MiB from 100 of them on, else in KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if nbytes >= 100 * unit:
            return f"{-(-nbytes // unit)}{name}"
    return f"{-(-nbytes // 2**10)}KiB"


def size(nbytes: int) -> str:
    """Bytes as people read them: 12 B, 820.5 KiB, 14.4 MiB, 1.2 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} B"
