"""How slowly a client may send a body."""

from __future__ import annotations

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import RequestTimeoutError

# The slowest link anyone uploads over is a thousand times faster; a client below it only holds a connection.
MIN_BYTES_PER_S = 1 * limits.KIB


class Pace:
    """A credit of ``idle_timeout_s`` seconds of waiting for the client, refilled by what arrives.

    Silence uses it up after that time, and so does a trickle below ``MIN_BYTES_PER_S``.
    """

    def __init__(self, idle_timeout_s: float) -> None:
        self._idle_timeout_s = idle_timeout_s
        self.credit_s = idle_timeout_s

    def waited(self, seconds: float) -> None:
        """Count time that was spent waiting for the client."""
        self.credit_s -= seconds

    def arrived(self, size_bytes: int) -> None:
        """Count what came."""
        self.credit_s = min(self._idle_timeout_s, self.credit_s + size_bytes / MIN_BYTES_PER_S)

    @property
    def is_used_up(self) -> bool:
        """Tell whether the client was too slow."""
        return self.credit_s <= 0

    def error(self) -> RequestTimeoutError:
        """Return the answer to a client that was too slow."""
        return RequestTimeoutError(
            f"The request's body came too slowly: nothing for {self._idle_timeout_s:g} s, or less than "
            f"{MIN_BYTES_PER_S} bytes a second. Send it again over a steady connection.",
        )
