"""Finding the platform's actors, and making them when they are not there."""

from __future__ import annotations

from typing import Any

import ray

from mixpeek_ray.catalog.catalog import get_catalog
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.actor import ModelRegistry, RegistryConfig
from mixpeek_ray.registry.handles import RAY_NAMESPACE, REGISTRY_NAME
from mixpeek_ray.registry.inspector import INSPECTOR_CONCURRENCY, INSPECTOR_NAME, ArchiveInspector

# Ray gives the head node one of these: the actors live there, because the head is the node whose loss ends the cluster
# anyway, so they survive every other node. (An owner that dies takes its ObjectRefs along.)
_HEAD_NODE = {"node:__internal_head__": 0.001}
# Calls queue here while the registry restarts (0.6 s measured); the caller's own time limit ends the wait.
_REGISTRY_TASK_RETRIES = 5
# Requests that wait for a deploy each hold a place.
_REGISTRY_CONCURRENCY = 10_000


def ensure_registry(settings: Settings) -> Any:
    """Return a handle of the registry actor, creating the actor unless it is there.

    Raises ``InvalidCatalogError`` when the models' catalog cannot be used, ``ModelNotFoundError`` when a warm model is
    not in it.
    """
    catalog = get_catalog()
    config = RegistryConfig(
        store_url=settings.resolved_store_url,
        secret_path=str(settings.secret_path),
        spool_dir=_spool_dir(settings),
        dev_key_path=str(settings.dev_key_path) if settings.dev_organization else None,
        upload_lifetime_s=settings.upload_lifetime_s,
        cards=tuple(catalog.values()),
        models_dir=str(settings.models_dir) if settings.models_dir is not None else None,
        model_idle_s=settings.model_idle_s,
        warm_models=tuple(catalog.find(name).name for name in settings.warm_model_names),
        pool_limit=settings.pool_limit,
    )
    actor = head_actor(
        ModelRegistry, REGISTRY_NAME, max_task_retries=_REGISTRY_TASK_RETRIES, max_concurrency=_REGISTRY_CONCURRENCY
    )
    return actor.remote(config)


def ensure_inspector(settings: Settings) -> Any:
    """Return a handle of the inspector actor, creating the actor unless it is there."""
    actor = head_actor(ArchiveInspector, INSPECTOR_NAME, max_task_retries=1, max_concurrency=INSPECTOR_CONCURRENCY)
    return actor.remote(store_url=settings.resolved_store_url, spool_dir=_spool_dir(settings))


def head_actor(actor_class: type, name: str, *, max_task_retries: int, max_concurrency: int) -> Any:
    """Return what makes, with ``remote``, the detached actor ``name`` on the head node, or finds it there.

    It is restarted for ever.
    """
    return ray.remote(actor_class).options(
        name=name,
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=max_task_retries,
        max_concurrency=max_concurrency,
        num_cpus=0,
        resources=_HEAD_NODE,
    )


def _spool_dir(settings: Settings) -> str | None:
    return str(settings.spool_dir) if settings.spool_dir is not None else None
