"""The least that an upload can be: an ASGI application that writes the body to a file as it arrives, and syncs it.

    python -m benchmarks.raw_put FOLDER

Adds it to the platform whose `env` file the shell has read. No form, no hash, no limits, no key, and Serve as it ships:
what `benchmarks.upload` is held against.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ray import serve
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

ROUTE = "/raw"
FILE_NAME = "raw-put"


@serve.deployment(name="raw-put", ray_actor_options={"num_cpus": 0})
@serve.ingress()
class RawPut:
    """Writes every request's body to one file in ``folder``."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder) / FILE_NAME

    def __serve_build_asgi_app__(self) -> ASGIApp:
        # Starlette only answers Serve's lifespan messages.
        return Starlette(routes=[Mount("/", self._put)])

    async def _put(self, _: Scope, receive: Receive, send: Send) -> None:
        # In the event loop: with one upload at a time there is nobody to keep waiting, and no hop to a thread to pay.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            more = True
            while more:
                message = await receive()
                rest = memoryview(message.get("body", b""))
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                more = message.get("more_body", False)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


if __name__ == "__main__":
    # As the main module it travels by value: replicas have no `benchmarks` to import.
    app = RawPut.bind(sys.argv[1])  # type: ignore[attr-defined]  # `serve.ingress` hides what `serve.deployment` adds
    serve.run(app, name="raw-put", route_prefix=ROUTE)
