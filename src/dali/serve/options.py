"""What `dali serve` is asked for beside the model."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from dali.errors import UsageError, parameter

HOST, PORT = "127.0.0.1", 8000
PARALLEL, QUEUE = 4, 64


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """UsageError, from the constructor, for what cannot be meant."""

    host: str = HOST
    port: int = PORT
    """0 for any that is free."""
    api_key: str | None = None
    """What clients must send; without one, only this machine is served."""
    alias: tuple[str, ...] = ()
    """What clients may call the model; the first is what it calls itself. Its own name where there is none."""
    parallel: int = PARALLEL
    """Answers under way at once."""
    queue: int = QUEUE
    """Answers that may wait for others."""

    def __post_init__(self) -> None:
        if self.api_key is None and not is_loopback(self.host):
            raise UsageError(
                f"{parameter('host')} {self.host} lets other machines in, and no key keeps anyone out.",
                f"Give {parameter('api_key')} too, or listen on {HOST}.",
            )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError(
                "The API key has letters that a header cannot carry.",
                "Use letters, digits and signs of ASCII.",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
