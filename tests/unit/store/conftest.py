"""A real S3 server (moto, over a socket) that tests can also break."""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server


class S3Server:
    """moto behind a socket on loopback. Its objects live in this process, so they survive ``stop`` and ``start``."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self._port = 0
        # The next requests are answered with these errors, each a status line and S3's code.
        self.faults: deque[tuple[str, str]] = deque()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not self.faults:
            return self._app(environ, start_response)
        status, code = self.faults.popleft()
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()]


class Bucket:
    """A bucket of the server, looked at from the outside."""

    def __init__(self, server: S3Server) -> None:
        self.name = f"bucket-{uuid.uuid4().hex}"
        self._client = boto3.client("s3", endpoint_url=server.url)
        self._client.create_bucket(Bucket=self.name)

    @property
    def keys(self) -> set[str]:
        return {item["Key"] for item in self._client.list_objects_v2(Bucket=self.name).get("Contents", [])}

    @property
    def unfinished_uploads(self) -> int:
        return len(self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", []))


@pytest.fixture(scope="session")
def _running_s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_server(_running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The running server, with the ``AWS_*`` environment that leads to it and to nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": _running_s3.url,
        "AWS_ACCESS_KEY_ID": "test-access-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield _running_s3
    _running_s3.faults.clear()


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    return Bucket(s3_server)
