"""Remote calls give the platform's own errors only; awaitables stand in for Ray's references."""

from __future__ import annotations

import asyncio

import pytest

from mixpeek_ray.core.errors import RegistryUnavailableError
from mixpeek_ray.registry.calls import call, call_while_alive


async def never() -> None:
    await asyncio.Event().wait()


def test_a_call_that_takes_too_long_is_an_unavailable_registry() -> None:
    with pytest.raises(RegistryUnavailableError):
        asyncio.run(call(never(), timeout_s=0.01))


def test_a_long_call_goes_on_while_the_check_passes() -> None:
    async def run() -> str:
        passed = asyncio.Event()
        checks = 0

        async def check() -> None:
            nonlocal checks
            checks += 1
            if checks == 3:
                passed.set()

        async def work() -> str:
            await passed.wait()
            return "done"

        return str(await call_while_alive(work(), check, every_s=0.01))

    assert asyncio.run(run()) == "done"


def test_a_long_call_ends_when_the_check_fails() -> None:
    async def check() -> None:
        raise RegistryUnavailableError("gone")

    with pytest.raises(RegistryUnavailableError, match="gone"):
        asyncio.run(call_while_alive(never(), check, every_s=0.01))


def test_a_quick_call_is_never_checked() -> None:
    async def check() -> None:
        raise AssertionError("checked")

    async def work() -> int:
        return 7

    assert asyncio.run(call_while_alive(work(), check, every_s=5)) == 7
