"""What comes of calling an application by its handle: the platform's own errors, and no others of a user's concern."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]  # its types are a package of their own
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from mixpeek_ray.core.errors import MixpeekError, OverloadedError, UnavailableError
from mixpeek_ray.core.logs import get_logger

_log = get_logger(__name__)

# What awaiting a response may raise besides what the method itself raised.
HANDLE_FAILURES = (RayError, RayServeException, grpc.RpcError)


def platform_error(error: Exception, application: str) -> Exception:
    """Return the platform's error that one of ``HANDLE_FAILURES`` stands for; ``error`` itself where it is a bug."""
    if isinstance(error, RayTaskError):
        # Ray's wrapper carries pid, address and the remote traceback; none of that is for a user.
        cause: Exception = error.cause
        return cause if isinstance(cause, MixpeekError) else error
    if isinstance(error, BackPressureError):
        return OverloadedError("As many requests wait for the model as may: send again later.")
    # A replica that died under the request, or an application that is being replaced or was never deployed.
    _log.warning("application %s did not answer: %s", application, type(error).__name__)
    return UnavailableError(f"The application {application!a} does not answer: try again in a few seconds.")
