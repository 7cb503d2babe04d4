"""The actor that looks after models' applications: what it does when the registry or Serve does not answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray
from custom_models import custom_model
from ray import serve
from waiting import until

from mixpeek_ray.core.errors import RegistryUnavailableError, UnavailableError
from mixpeek_ray.core.records import ModelState, ResourceRequest
from mixpeek_ray.serving import dedicated_control
from mixpeek_ray.serving.dedicated_control import DedicatedApplications
from mixpeek_ray.serving.placement import APPLICATION_PREFIX

PLATFORM = {"gateway", "models"}


class Cluster:
    """The registry and Serve, as the actor meets them."""

    def __init__(self) -> None:
        self.states: tuple[ModelState, ...] = ()
        self.applications = set(PLATFORM)
        self.failure: Exception | None = None
        self.asked = self.looked = 0
        # Answers as the actor's runtime context, too.
        self.was_current_actor_reconstructed = False
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.dedicated_models = self

    async def remote(self) -> tuple[ModelState, ...]:
        """Answer as the registry's method."""
        self.asked += 1
        states = self.states
        await self.let_go.wait()
        if self.failure is not None:
            raise self.failure
        return states

    def running(self) -> frozenset[str]:
        """Answer as Serve's status."""
        self.looked += 1
        return frozenset(self.applications)

    def run_many(self, targets: Any, *, wait_for_applications_running: bool) -> None:
        assert not wait_for_applications_running
        for target in targets:
            assert target.route_prefix is None
            self.applications.add(target.name)

    @property
    def own(self) -> set[str]:
        return self.applications - PLATFORM


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a scene with an actor that does nothing unless it is told to."""

    def run(scene: Callable[[DedicatedApplications, Cluster], Any], *, reconstructed: bool = False) -> None:
        async def played() -> None:
            cluster = Cluster()
            monkeypatch.setattr(dedicated_control, "find_registry", lambda: cluster)
            monkeypatch.setattr(dedicated_control, "_applications", cluster.running)
            monkeypatch.setattr(ray, "get_runtime_context", lambda: cluster)
            monkeypatch.setattr(dedicated_control, "_delete", cluster.applications.discard)
            monkeypatch.setattr(dedicated_control, "_GRACE_S", 0.0)
            monkeypatch.setattr(serve, "run_many", cluster.run_many)
            monkeypatch.setattr(DedicatedApplications, "_keep", lambda _: asyncio.sleep(0))
            cluster.was_current_actor_reconstructed = reconstructed
            actor: Any = DedicatedApplications.__new__(DedicatedApplications)
            await actor.__init__(lambda ref, own: None)
            await scene(actor, cluster)

        asyncio.run(played())

    return run


def large() -> ModelState:
    state = custom_model("large")
    return replace(state, manifest=replace(state.manifest, resources=ResourceRequest(num_cpus=2.0)))


def test_serve_runs_what_the_registry_says(act: Any) -> None:
    async def scene(actor: DedicatedApplications, cluster: Cluster) -> None:
        cluster.states = (large(), custom_model("small"))
        await actor.refresh()
        (name,) = cluster.own
        assert "large" in name
        cluster.states = ()
        await actor.refresh()
        assert not cluster.own

    act(scene)


@pytest.mark.parametrize("failure", [RegistryUnavailableError("It does not answer."), RuntimeError("Whatever.")])
def test_silence_is_no_reason_to_delete(act: Any, failure: Exception) -> None:
    async def scene(actor: DedicatedApplications, cluster: Cluster) -> None:
        cluster.states = (large(),)
        await actor.refresh()
        cluster.states, cluster.failure = (), failure
        with pytest.raises(UnavailableError):
            await actor.refresh()
        assert cluster.own
        cluster.failure = None
        await actor.refresh()
        assert not cluster.own

    act(scene)


def test_serve_is_not_started_where_it_does_not_run(act: Any) -> None:
    async def scene(actor: DedicatedApplications, cluster: Cluster) -> None:
        cluster.states = (large(),)
        cluster.applications.clear()
        await actor.refresh()
        assert not cluster.applications

    act(scene)


def test_who_asks_during_a_round_waits_for_the_next_one(act: Any) -> None:
    """The round under way may have asked the registry before the deploy that the caller knows of."""

    async def scene(actor: DedicatedApplications, cluster: Cluster) -> None:
        cluster.let_go.clear()
        first = asyncio.create_task(actor.refresh())
        await until(lambda: cluster.asked == 1)
        cluster.states = (large(),)
        later = [asyncio.create_task(actor.refresh()) for _ in range(10)]
        await asyncio.sleep(0)
        cluster.let_go.set()
        await asyncio.gather(first, *later)
        assert cluster.own
        # One round answers them all.
        assert cluster.asked == 2

    act(scene)


def test_serve_is_left_alone_while_there_is_nothing_to_do(act: Any) -> None:
    async def scene(actor: DedicatedApplications, cluster: Cluster) -> None:
        await actor.refresh()
        assert cluster.looked == 0
        cluster.states = (large(),)
        await actor.refresh()
        cluster.states = ()
        while cluster.own:
            await actor.refresh()
        await actor.refresh()
        looked = cluster.looked
        await actor.refresh()
        assert cluster.looked == looked

    act(scene)


def test_what_a_killed_one_left_is_taken_away_by_the_next(act: Any) -> None:
    async def scene(actor: DedicatedApplications, cluster: Cluster) -> None:
        cluster.applications.add(f"{APPLICATION_PREFIX}left-over")
        await actor.refresh()
        assert not cluster.own

    act(scene, reconstructed=True)


def test_what_starts_applications_is_small_until_it_does() -> None:
    """It lives on every platform, and most have no model that asks for more than the pool."""
    script = (
        "import sys, deployments.building, mixpeek_ray.serving.dedicated_control; "
        "print({'torch', 'ray.serve'} & set(sys.modules)); "
        "import deployments.gateway, deployments.dedicated; print({'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "set()"]
