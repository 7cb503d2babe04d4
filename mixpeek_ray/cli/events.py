"""What the platform's processes tell each other while it starts: one JSON object a line over a pipe."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step of the start has begun."""

    step: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The platform answers: where, and where Ray is."""

    api_url: str
    dashboard_url: str
    gcs_address: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The platform could not start, or ended by itself."""

    message: str


Event = Progress | Ready | Failed
_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Progress, Ready, Failed)}


def encode(event: Event) -> bytes:
    """Return the line that carries ``event``."""
    return json.dumps({"kind": type(event).__name__, **asdict(event)}).encode() + b"\n"


def decode(line: bytes) -> Event:
    """Return the event that ``line`` carries."""
    fields = json.loads(line)
    return _KINDS[fields.pop("kind")](**fields)


def send(fd: int, event: Event) -> None:
    """Write ``event`` to the pipe ``fd``; a reader that has gone is no error."""
    try:
        os.write(fd, encode(event))
    except BrokenPipeError:
        return


class EventReader:
    """Cuts the bytes of a pipe into events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events completed by ``data``, in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [decode(line) for line in lines]
