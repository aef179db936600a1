"""A server that speaks as much of the Hugging Face hub's API as downloads need, with accidents on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34
LARGE = ".safetensors"
"""Files with this ending lie elsewhere, as large ones do: the hub redirects."""


@dataclass
class FakeHub:
    """repos: content of the files by repository and name. damaged: sends other bytes than it states for these.

    refused: (status, code of the error) by repository. cut: files of which one answer breaks off after so many bytes.
    down: no answer any more. asked: method, path, Range and Authorization of each request.
    """

    repos: dict[str, dict[str, bytes]]
    port: int = 0
    damaged: set[str] = field(default_factory=set)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    down: bool = False
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self, name: str) -> list[str | None]:
        """The Range of each request for the content of a file."""
        return [span for method, path, span, _ in self.asked if method == "GET" and path.endswith(name)]

    def siblings(self, repo: str) -> list[dict[str, Any]]:
        found = []
        for name, content in self.repos[repo].items():
            one: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob_of(content)}
            if name.endswith(LARGE):
                sha = hashlib.sha256(content).hexdigest()
                one["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            found.append(one)
        return found


def blob_of(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def serving(repos: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    hub = FakeHub(repos)

    class Handler(Answer):
        world = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answer(BaseHTTPRequestHandler):
    world: FakeHub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.world.asked.append((self.command, path, self.headers["Range"], self.headers["Authorization"]))
        if self.world.down:
            self.close_connection = True
            return
        if path.startswith("/api/models/"):
            self.listing(path.removeprefix("/api/models/").removesuffix("/revision/main"))
            return
        if path.startswith("/elsewhere/"):
            owner, name, file = path.removeprefix("/elsewhere/").split("/", 2)
            self.content(f"{owner}/{name}", file)
            return
        repo, _, file = path.lstrip("/").partition("/resolve/main/")
        self.file(repo, file)

    def listing(self, repo: str) -> None:
        if self.is_refused(repo):
            return
        text = json.dumps({"id": repo, "sha": COMMIT, "siblings": self.world.siblings(repo)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def is_refused(self, repo: str, file: str | None = None) -> bool:
        status, code = self.world.refused.get(repo, (0, ""))
        if not status and repo not in self.world.repos:
            status, code = 401, "RepoNotFound"
        if not status and file is not None and file not in self.world.repos[repo]:
            status, code = 404, "EntryNotFound"
        if not status:
            return False
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def file(self, repo: str, file: str) -> None:
        if self.is_refused(repo, file):
            return
        content = self.world.repos[repo][file]
        if not file.endswith(LARGE):
            self.content(repo, file)
            return
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.world.port}/elsewhere/{repo}/{file}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def content(self, repo: str, file: str) -> None:
        content = self.world.repos[repo][file]
        etag = blob_of(content)
        if file in self.world.damaged:
            content = bytes(len(content))
        begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - begin))
        if self.headers["Range"]:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.world.cut.pop(file, None)
        self.wfile.write(content[begin:cut])
        if cut is not None:
            self.close_connection = True
            self.world.down = True
