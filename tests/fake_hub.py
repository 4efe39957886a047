"""A small Hugging Face Hub on this machine: the few endpoints that huggingface_hub calls to publish and to fetch."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
REGULAR = (".md", ".json")


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.tar filter=lfs\n"}])
    gated: bool = False

    @property
    def head(self) -> str:
        return oid(len(self.commits) - 1)

    def files(self, revision: str) -> dict[str, bytes] | None:
        known = {oid(number): files for number, files in enumerate(self.commits)}
        return known.get(self.head if revision == "main" else revision)


def oid(number: int) -> str:
    return f"{number + 1:040x}"


class FakeHub:
    """Repositories by (`dataset` or `model`, name). `requests` are (method, path) of all that came."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lose = ""
        """A file whose bytes arrive with one of them changed."""
        self.status = 0
        """Answer to every request, if not 0."""
        self.endpoint = ""

    def fetched(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [path.rsplit("/resolve/", 1)[1].partition("/")[2] for method, path in self.requests
                if method == "GET" and "/resolve/" in path]  # fmt: skip


@contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `requests`."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        if self.hub.status:
            return self._send({"error": "as told"}, self.hub.status)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send({"warnings": [], "errors": []})
        if path.startswith("/lfs/"):
            self.hub.objects[path.removeprefix("/lfs/")] = body
            return self._send({})
        api = re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+?)(?:/(revision|preupload|commit|tree)/([^/]+))?", path)
        if api:
            return self._api(api[1], api[2], api[3] or "revision", api[4] or "main", body)
        lfs = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if lfs:
            return self._batch(json.loads(body))
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if file:
            return self._resolve("dataset" if file[1] else "model", file[2], file[3], file[4])
        return self._send({"error": f"not here: {path}"}, 404)

    def _repo(self, kind: str, name: str) -> Repository | None:
        found = self.hub.repos.get((kind, name))
        return None if found is None or (found.private and not self._known()) else found

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, wanted: dict[str, Any]) -> None:
        if not self._known():
            return self._send({"error": "Invalid username or password."}, 401)
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] == "others":
            return self._send({"error": "You don't have the rights"}, 403)
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.hub.repos[wanted.get("type") or "model", name] = Repository(bool(private))
        return self._send({"url": f"{self.hub.endpoint}/{name}"})

    def _api(self, kind: str, name: str, what: str, revision: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return self._send({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        if repo.gated:
            return self._send({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        files = repo.files(revision)
        if files is None:
            return self._send({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if what == "preupload":
            asked = [item["path"] for item in json.loads(body)["files"]]
            modes = {path: "regular" if path.endswith(REGULAR) else "lfs" for path in asked}
            return self._send({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False}
                                         for path, mode in modes.items()]})  # fmt: skip
        if what == "commit":
            page = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
            return self._commit(repo, page, [json.loads(line) for line in body.splitlines()])
        if what == "tree":
            return self._send([_entry(path, data) for path, data in files.items()])
        commit = repo.head if revision == "main" else revision
        return self._send({"id": name, "sha": commit, "private": repo.private, "siblings": [], "tags": []})

    def _commit(self, repo: Repository, page: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repo.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", repo.head) != repo.head:
                return self._send({"error": "the branch has moved"}, 412)
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            if value.get("path") == self.hub.lose:
                files[self.hub.lose] = files[self.hub.lose][:-1] + b"?"
        repo.commits.append(files)
        return self._send({"commitUrl": f"{page}/commit/{repo.head}", "commitOid": repo.head})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for item in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}
            objects.append(item if item["oid"] in self.hub.objects else {**item, "actions": upload})
        return self._send({"objects": objects, "transfer": "basic"})

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name)
        files = repo.files(revision) if repo else None
        if files is None or path not in files:
            return self._send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        sha256 = hashlib.sha256(files[path]).hexdigest()
        commit = repo.head if repo and revision == "main" else revision
        headers, data = {"ETag": f'"{sha256}"', "X-Repo-Commit": commit}, files[path]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(data, 200, headers)
        part = data[int(asked[1]) : int(asked[2]) + 1]
        headers["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}"
        return self._send(part, 206, headers)

    def _send(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        for key, value in {**(headers or {}), **({"X-Error-Message": "as told"} if status >= 500 else {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    lfs = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
    return {"type": "file", "path": path, "size": len(data), "oid": blob, **({} if path.endswith(REGULAR) else lfs)}
