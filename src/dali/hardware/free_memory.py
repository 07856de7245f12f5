"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_ram() -> int:
    """Bytes a process can take without swapping: free in the system, and still allowed to its container."""
    available = int(psutil.virtual_memory().available)
    for limit, usage in _CGROUP_LIMITS:
        try:
            room = int(Path(limit).read_text()) - int(Path(usage).read_text())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        available = min(available, max(room, 0))
    return available
