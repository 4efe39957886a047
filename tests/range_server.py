"""A small web server for files, with byte ranges, that can misbehave in the ways that servers do."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Served:
    """A folder behind `url`. What is set here holds for the requests that follow."""

    root: Path
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range) of all requests."""
    sent: int = 0
    """Bytes of bodies."""
    ranges: bool = True
    failures: list[int] = field(default_factory=list)
    """Statuses for the next requests, in place of an answer."""
    retry_after: str = ""
    """What goes with these."""
    truncate: int = 0
    """How many answers break off in the middle."""
    flip: int = 0
    """How many answers to requests for shards have a wrong byte in every 50."""
    delay: float = 0.0
    etag: str = ""
    """Part of every ETag; a change is what a changed file looks like."""
    password: str = ""
    """`user:password`, if one is needed."""
    query: str = ""
    """What the query has to be."""

    def count(self, name: str) -> int:
        """Requests for files whose path ends so."""
        return sum(path.endswith(name) for path, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every body waits 40 ms for the acknowledgement of its headers
    served: Served

    def do_GET(self) -> None:
        served, parts = self.served, urlsplit(self.path)
        served.asked.append((parts.path, self.headers.get("Range", "")))
        time.sleep(served.delay)
        if served.failures:
            later = {"Retry-After": served.retry_after} if served.retry_after else {}
            return self._answer(served.failures.pop(0), b"", later)
        expected = "Basic " + base64.b64encode(served.password.encode()).decode()
        if (served.password and self.headers.get("Authorization") != expected) or parts.query != served.query:
            return self._answer(403, b"")
        file = served.root / unquote(parts.path).lstrip("/")
        if not file.is_file():
            return self._answer(404, b"")
        size, changed = file.stat().st_size, file.stat().st_mtime_ns
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        more = {"ETag": f'"{changed:x}{served.etag}"'}
        if asked is None or not served.ranges:
            return self._answer(200, file.read_bytes(), more)
        start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
        if start >= size:
            return self._answer(416, b"")
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(stop - start)
        more["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return self._answer(206, self._spoilt(data, file.name), more)

    def _spoilt(self, body: bytes, name: str) -> bytes:
        if self.served.flip and name.endswith(".tar"):
            self.served.flip -= 1
            return bytes(byte ^ (number % 50 == 49) for number, byte in enumerate(body))
        return body

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        served = self.served
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if served.truncate and body:
            served.truncate -= 1
            body, self.close_connection = body[: len(body) // 2], True
        try:
            self.wfile.write(body)
        except ConnectionError:  # the client has left, as it may
            return
        served.sent += len(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silence."""


def read_in_child(found: Any, position: int, answers: Any) -> None:
    """For tests with processes, which import this file again and no more than it needs."""
    answers.put((position, float(found[position]["action"].sum()), found.fetched.requests))


@contextmanager
def serving(root: Path) -> Iterator[Served]:
    """The files of `root` on a port of the loopback."""
    served = Served(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
