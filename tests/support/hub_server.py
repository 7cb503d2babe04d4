"""A Hugging Face hub of local folders: what its client asks of the real one, over a socket."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# The one commit that every repository has.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves folders as repositories, by name; counts what was asked."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        self._repositories = repositories
        # Paths of the files that were sent.
        self.sent: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Close the socket; whoever asks from now on is refused."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def log_message(self, *_: object) -> None:
                """Say nothing: the tests look at `sent`."""

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        # {owner}/{name}/resolve/{revision}/{file}, or api/models/{owner}/{name}/{tree or revision}/{revision}
        path = request.path.partition("?")[0].removeprefix("/").removeprefix("api/models/")
        owner, name, verb, revision, file = (*path.split("/", 4), "", "", "", "")[:5]
        folder = self._repositories.get(f"{owner}/{name}")
        if folder is None or revision not in ("main", COMMIT):
            code = "RepoNotFound" if folder is None else "RevisionNotFound"
            _send(request, 404, b"{}", {"X-Error-Code": code}, body=body)
        elif verb == "resolve":
            self._send_file(request, folder, file, body=body)
        elif verb == "tree":
            _send(request, 200, json.dumps(_tree(folder)).encode(), {}, body=body)
        else:
            found = {"id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": COMMIT, "siblings": []}
            _send(request, 200, json.dumps(found).encode(), {}, body=body)

    def _send_file(self, request: BaseHTTPRequestHandler, folder: Path, name: str, *, body: bool) -> None:
        path = folder / name
        if not path.is_file():
            _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        content = path.read_bytes()
        if body:
            self.sent.append(name)
        _send(request, 200, content, {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": COMMIT}, body=body)


def _tree(folder: Path) -> list[dict[str, object]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": _blob(path.read_bytes()),
        }
        for path in files
    ]


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _send(
    request: BaseHTTPRequestHandler, status: int, content: bytes, headers: Mapping[str, str], *, body: bool
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if body:
        request.wfile.write(content)
