"""Models with an application of their own, as a replica of the pool reaches them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from mixpeek_ray.api.remembered import RememberedAnswers
from mixpeek_ray.core.errors import OverloadedError, UnavailableError
from mixpeek_ray.registry.capacity import missing_now
from mixpeek_ray.servables.base import NamedArrays, OwnApplication, Parameters, ServableRef, ServableSpec
from mixpeek_ray.servables.tensors import check_inputs
from mixpeek_ray.serving.dedicated_control import ControlClient
from mixpeek_ray.serving.handles import HANDLE_FAILURES, platform_error
from mixpeek_ray.serving.replica_standing import Standing, Standings

# A new replica answers 5-10 s after it was asked for: whoever waits longer is told why.
_LOOK_S = 10.0
# Serve makes an application in a second, and takes one of the same name away in a few.
_PAUSE_S, _SWAP_S = 0.2, 10.0
# Each of those who wait for a replica holds its whole request in memory.
_MAX_WAITING = 256
# Room is made by people, or by replicas that nobody used for minutes.
_RETRY_S = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoteModel:
    """Implements ``api.predict_ports.ServedModel`` by way of its application's replicas."""

    ref: ServableRef
    spec: ServableSpec
    application: Application

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs. Raises ``ValidationError`` naming the input, and as ``Application.call``.

        A caller that is cancelled takes back what was not begun.
        """
        check_inputs(self.spec, inputs)
        found: NamedArrays = await self.application.call("compute", dict(inputs), parameters)
        return found


class RemoteModels:
    """The models with an application of their own that this replica was asked for; used from its event loop."""

    def __init__(self, *, wait_s: float) -> None:
        """``wait_s``: how long a request may wait for a replica to start."""
        self._wait_s = wait_s
        self._control = ControlClient()
        self._standings = Standings()
        self._applications: dict[ServableRef, Application] = {}
        # What a model takes never changes: another content has another application.
        self._specs = RememberedAnswers[str, ServableSpec](trust_s=math.inf)

    @asynccontextmanager
    async def use(self, ref: ServableRef, own: OwnApplication) -> AsyncIterator[RemoteModel]:
        """Provide the model of ``ref``. Raises as ``Application.call``."""
        application = self._applications.get(ref)
        if application is None:
            application = self._applications[ref] = Application(
                own, ref.name, self._control, self._standings, wait_s=self._wait_s
            )
        with application.place():
            spec = await self._specs.get(own.name, lambda: application.call("describe"))
        yield RemoteModel(ref=ref, spec=spec, application=application)

    def known(self) -> tuple[ServableRef, ...]:
        """Return the models that were asked for and not forgotten."""
        return tuple(self._applications)

    def forget(self, ref: ServableRef) -> None:
        """Let go of a model; whoever waits for its answer still gets it."""
        application = self._applications.pop(ref, None)
        if application is not None:
            application.let_go()


class Application:
    """The application of one model; its handle is found when it is first called."""

    def __init__(
        self, own: OwnApplication, model_name: str, control: ControlClient, standings: Standings, *, wait_s: float
    ) -> None:
        self._own = own
        self._model_name = model_name
        self._control = control
        self._standings = standings
        self._wait_s = wait_s
        self._waiting = 0
        self._handle: Any = None
        self._closing: set[asyncio.Future[None]] = set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place among those who wait for a first replica. Raises ``OverloadedError``."""
        if self._waiting >= _MAX_WAITING:
            raise OverloadedError(
                f"Model {self._model_name!a} is starting and {self._waiting} requests wait for it already: send again "
                "later."
            )
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def call(self, method: str, *arguments: Any) -> Any:
        """Return what a replica's ``method`` returns; waits for a replica while none runs.

        Raises what the method raises, ``OverloadedError`` when too many wait, ``UnavailableError`` when no replica can
        be had in time, or the one that computes is lost.
        """
        begun = time.monotonic()
        while True:
            handle = await self._find()
            try:
                return await self._answer(getattr(handle, method).remote(*arguments))
            except DeploymentUnavailableError as error:
                # It was taken away, and is started again where its model was deployed again: nothing was computed.
                self.let_go()
                if time.monotonic() - begun > _SWAP_S:
                    raise platform_error(error, self._own.name) from None
            except HANDLE_FAILURES as error:
                raise platform_error(error, self._own.name) from None
            await asyncio.sleep(_PAUSE_S)

    def let_go(self) -> None:
        """Forget the handle; calls that were made with it are answered."""
        handle, self._handle = self._handle, None
        if handle is not None:
            # Else it reports to Serve's controller for as long as this process lives.
            closing = asyncio.ensure_future(handle.shutdown_async())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _find(self) -> Any:
        deadline = time.monotonic() + self._wait_s
        while self._handle is None:
            try:
                found = await asyncio.to_thread(serve.get_app_handle, self._own.name)
                # Others may have looked at the same time.
                self._handle = self._handle or found
            except RayServeException:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"Model {self._model_name!a} has no application yet: try again in a few seconds."
                    ) from None
                await self._control.refresh()
                await asyncio.sleep(_PAUSE_S)
        return self._handle

    async def _answer(self, response: Any) -> Any:
        answer = asyncio.ensure_future(_result(response))
        begun = time.monotonic()
        try:
            while not (await asyncio.wait({answer}, timeout=_LOOK_S))[0]:
                await self._check(time.monotonic() - begun)
            return answer.result()
        finally:
            if not answer.done():
                response.cancel()
                answer.cancel()

    async def _check(self, waited_s: float) -> None:
        """Return while there is something to wait for. Raises ``UnavailableError``."""
        standing = await self._standings.of(self._own.name)
        if standing is Standing.RUNNING:
            return
        if standing is Standing.ABSENT:
            raise UnavailableError(f"Model {self._model_name!a} lost its application: try again in a few seconds.")
        missing = None
        if standing is Standing.WAITING:
            missing = await asyncio.to_thread(missing_now, self._own.resources)
        if missing is not None:
            raise UnavailableError(
                f"Model {self._model_name!a} waits for room to run ({missing}): try again later, or undeploy what is "
                "not needed.",
                retry_after_seconds=_RETRY_S,
            )
        if waited_s >= self._wait_s:
            raise UnavailableError(f"Model {self._model_name!a} is still starting: try again in a few seconds.")


async def _result(response: Any) -> Any:
    return await response
