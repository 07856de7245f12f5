"""A Hugging Face hub of this machine's own: repositories are folders, whose files may be asked for in parts."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub(ThreadingHTTPServer):
    """`root`/org/name are its repositories. ranges: whether it sends parts of files; delay: seconds before it answers; gated:
    names of repositories that it says are; `sent`: bytes of files so far, `asked`: requests."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path, *, ranges: bool = True, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.ranges, self.delay = root, ranges, delay
        self.gated: set[str] = set()
        self.lies: dict[str, int] = {}  # file -> the bytes that it is said to have
        self.sent = self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        hub = self.server
        hub.asked += 1
        time.sleep(hub.delay)
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/(\w[\w.-]*/[\w.-]+)", path):
            self._list(found[1])
        elif found := re.fullmatch(r"/(\w[\w.-]*/[\w.-]+)/resolve/main/(.+)", path):
            self._file(hub.root / found[1] / found[2])
        else:
            self._answer(404, b"")

    def _list(self, name: str) -> None:
        folder = self.server.root / name
        if name in self.server.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif not folder.is_dir():
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            listed = [
                {
                    "rfilename": str(file.relative_to(folder)),
                    "size": self.server.lies.get(file.name, file.stat().st_size),
                }
                for file in files
            ]
            self._answer(200, json.dumps({"id": name, "siblings": listed}).encode())

    def _file(self, file: Path) -> None:
        if not file.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        total = file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        begin, end = (int(wanted[1]), min(int(wanted[2]) + 1, total)) if wanted else (0, total)
        if not self.server.ranges:
            begin, end = 0, total
        with file.open("rb") as source:
            source.seek(begin)
            data = source.read(end - begin)
        self.server.sent += len(data)
        partly = self.server.ranges and wanted is not None
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{total}"} if partly else {}
        self._answer(206 if partly else 200, data, headers)
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:  # whoever asked has seen enough
            self.close_connection = True


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """While it answers."""
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
