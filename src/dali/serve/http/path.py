"""A request's path as the app's own routes have it, wherever the app is mounted."""

from __future__ import annotations

from starlette.types import Scope


def own_path(scope: Scope) -> str:
    """The path without `root_path`, by the rule of Starlette's routing: who is let in and what answers go by the same path. A
    proxy may have taken the prefix away already."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    rest = path.removeprefix(prefix)
    return rest if rest.startswith("/") or path == prefix else path
