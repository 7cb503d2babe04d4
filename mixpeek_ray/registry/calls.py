"""Calling an actor so that only the platform's own errors come out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from mixpeek_ray.core.errors import RegistryUnavailableError


async def call(reference: Any, timeout_s: float) -> Any:
    """Return the result of a remote call made from an event loop.

    Raises what the call raised, ``RegistryUnavailableError`` when it does not answer within ``timeout_s``.
    """
    try:
        return await asyncio.wait_for(reference, timeout_s)
    except TimeoutError:
        raise unavailable() from None
    except RayError as error:
        raise translate(error) from None


async def call_while_alive(reference: Any, check: Callable[[], Awaitable[object]], every_s: float) -> Any:
    """Return the result of a remote call that may take long, as long as ``check`` passes ``every_s`` seconds.

    Raises what the call or the check raised.
    """
    result = asyncio.ensure_future(reference)
    try:
        while not (await asyncio.wait({result}, timeout=every_s))[0]:
            await check()
        return await result
    except RayError as error:
        raise translate(error) from None
    finally:
        result.cancel()


def call_blocking(reference: Any, timeout_s: float) -> Any:
    """Return the result of a remote call made from a thread; raises as ``call`` does."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayError as error:
        raise translate(error) from None


def translate(error: Any) -> Exception:
    """Return the platform's error that a failed remote call stands for."""
    if isinstance(error, RayTaskError):
        # Ray's wrapper carries pid, address and the remote traceback; none of that is for a user.
        cause: Exception = error.cause
        return cause
    if isinstance(error, RayActorError | GetTimeoutError):
        return unavailable()
    other: Exception = error
    return other


def unavailable() -> RegistryUnavailableError:
    """Return the error for a registry that does not answer."""
    return RegistryUnavailableError(
        "The model registry does not answer: it is restarting or overloaded. Try again in a few seconds."
    )
