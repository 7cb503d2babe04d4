"""A deterministic platform in memory, and the HTTP application over it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fake_inference import FakeInference

from mixpeek_ray.api.app import create_app
from mixpeek_ray.api.ports import DeployResult, PlatformHealth, UploadResult
from mixpeek_ray.catalog.availability import Availability, BuiltinModel
from mixpeek_ray.catalog.catalog import Catalog, packaged_catalog
from mixpeek_ray.core.errors import (
    InvalidApiKeyError,
    ModelNotFoundError,
    NamespaceNotFoundError,
    QuotaExceededError,
    VersionExistsError,
)
from mixpeek_ray.core.ids import model_id
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentStatus,
    FileInfo,
    ModelManifest,
    ModelState,
    Namespace,
    Organization,
    Principal,
    Role,
    Tier,
    UploadedArchive,
    UploadForm,
)
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.store.base import BlobStore
from mixpeek_ray.store.memory_store import MemoryStore

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NAMESPACE = "ns_acme"
FOREIGN_NAMESPACE = "ns_other"
MAX_UPLOAD_BYTES = 2_000_000


def _principal(name: str, organization: str, role: Role, tier: Tier) -> Principal:
    owner = Organization(organization_id=f"org_{organization}", name=organization.title(), tier=tier, created_at=NOW)
    return Principal(key_id=f"key_{name}", organization=owner, role=role)


PRINCIPALS = {
    "sk_writer": _principal("writer", "acme", Role.WRITE, Tier.ENTERPRISE),
    "sk_reader": _principal("reader", "acme", Role.READ, Tier.ENTERPRISE),
    "sk_admin": _principal("admin", "acme", Role.ADMIN, Tier.ENTERPRISE),
    "sk_pro": _principal("pro", "small", Role.WRITE, Tier.PRO),
    "sk_other": _principal("other", "other", Role.WRITE, Tier.ENTERPRISE),
}
CONTENTS = ArchiveContents(
    files=(FileInfo(path="model.pt", size_bytes=787_456),),
    tensor_count=2,
    parameter_count=196_864,
    dtypes=("float32",),
    weights_bytes=787_456,
)


class FakePlatform:
    """The use cases over dictionaries; ``failures`` makes a method raise, ``calls`` says what was asked."""

    def __init__(self, store: BlobStore, catalog: Catalog) -> None:
        self.store = store
        self.builtin = [BuiltinModel(card=card, availability=Availability.AVAILABLE) for card in catalog.values()]
        self.models: dict[tuple[str, str], ModelState] = {}
        self.namespaces = {NAMESPACE: "org_acme", FOREIGN_NAMESPACE: "org_other"}
        self.quota = 50
        self.failures: dict[str, BaseException] = {}
        self.calls: list[str] = []
        self.uploads: list[tuple[UploadForm, UploadedArchive]] = []
        self.commit_gate: asyncio.Event | None = None
        self.health_now = PlatformHealth(
            registry=True, object_storage=True, task_queue=True, object_store_memory=True, ingress="haproxy"
        )

    def _enter(self, call: str, principal: Principal | None = None, namespace_id: str | None = None) -> None:
        self.calls.append(call)
        if call in self.failures:
            raise self.failures[call]
        if namespace_id is not None and principal is not None:
            owner = self.namespaces.get(namespace_id)
            if owner != principal.organization.organization_id:
                raise NamespaceNotFoundError(f"There is no namespace {namespace_id}.", namespace_id=namespace_id)

    def _model(self, namespace_id: str, wanted: str) -> ModelState:
        try:
            return self.models[namespace_id, wanted]
        except KeyError:
            raise ModelNotFoundError(f"There is no model {wanted}. Upload it first.") from None

    async def authenticate(self, api_key: str) -> Principal:
        self._enter("authenticate")
        try:
            return PRINCIPALS[api_key]
        except KeyError:
            raise InvalidApiKeyError("This API key is unknown or revoked.") from None

    async def admit_upload(self, principal: Principal, namespace_id: str) -> None:
        self._enter("admit_upload", principal, namespace_id)
        if len(self.models) >= self.quota:
            raise QuotaExceededError("The namespace is full: delete a model first.", limit=self.quota)

    async def commit_upload(
        self, principal: Principal, namespace_id: str, form: UploadForm, archive: UploadedArchive
    ) -> UploadResult:
        self._enter("commit_upload", principal, namespace_id)
        if self.commit_gate is not None:
            await self.commit_gate.wait()
        self.uploads.append((form, archive))
        new_id = model_id(form.name, form.version)
        known = self.models.get((namespace_id, new_id))
        if known is not None:
            self.store.delete(archive.temporary_key)
            if known.manifest.archive_sha256 != archive.sha256:
                raise VersionExistsError(f"{new_id} exists with other bytes: choose another version.")
            return UploadResult(model=known, created=False)
        self.store.promote(archive.temporary_key, f"archives/{archive.sha256}")
        manifest = ModelManifest(
            namespace_id=namespace_id,
            model_id=new_id,
            name=form.name,
            version=form.version,
            model_format=form.model_format,
            framework=form.framework,
            task_type=form.task_type,
            resources=form.resources,
            archive_sha256=archive.sha256,
            archive_bytes=archive.size_bytes,
            created_at=NOW,
            contents=CONTENTS,
        )
        state = ModelState(manifest=manifest, status=DeploymentStatus.NOT_DEPLOYED, updated_at=NOW)
        self.models[namespace_id, new_id] = state
        return UploadResult(model=state, created=True)

    async def list_models(self, principal: Principal, namespace_id: str) -> Sequence[ModelState]:
        self._enter("list_models", principal, namespace_id)
        return [state for (owner, _), state in self.models.items() if owner == namespace_id]

    async def get_model(self, principal: Principal, namespace_id: str, model_id: str) -> ModelState:
        self._enter("get_model", principal, namespace_id)
        return self._model(namespace_id, model_id)

    async def deploy(self, principal: Principal, namespace_id: str, model_id: str, *, wait: bool) -> DeployResult:
        self._enter("deploy", principal, namespace_id)
        state = self._model(namespace_id, model_id)
        if state.status is DeploymentStatus.DEPLOYED:
            return DeployResult(model=state, cached=True)
        status = DeploymentStatus.DEPLOYED if wait else DeploymentStatus.PENDING
        state = replace(state, status=status, deployed_at=NOW if wait else None)
        self.models[namespace_id, model_id] = state
        return DeployResult(model=state, cached=False)

    async def undeploy(self, principal: Principal, namespace_id: str, model_id: str) -> ModelState:
        self._enter("undeploy", principal, namespace_id)
        state = replace(self._model(namespace_id, model_id), status=DeploymentStatus.NOT_DEPLOYED, deployed_at=None)
        self.models[namespace_id, model_id] = state
        return state

    async def delete(self, principal: Principal, namespace_id: str, model_id: str) -> None:
        self._enter("delete", principal, namespace_id)
        self._model(namespace_id, model_id)
        del self.models[namespace_id, model_id]

    async def list_namespaces(self, principal: Principal) -> Sequence[Namespace]:
        self._enter("list_namespaces")
        owner = principal.organization.organization_id
        return [_namespace(name, owner) for name, found in sorted(self.namespaces.items()) if found == owner]

    async def create_namespace(self, principal: Principal, name: str) -> Namespace:
        self._enter("create_namespace")
        self.namespaces[f"ns_{name}"] = principal.organization.organization_id
        return _namespace(f"ns_{name}", principal.organization.organization_id)

    async def health(self) -> PlatformHealth:
        self._enter("health")
        return self.health_now

    async def builtin_models(self) -> Sequence[BuiltinModel]:
        self._enter("builtin_models")
        return self.builtin


def _namespace(namespace_id: str, organization_id: str) -> Namespace:
    name = namespace_id.removeprefix("ns_")
    return Namespace(namespace_id=namespace_id, organization_id=organization_id, name=name, created_at=NOW)


@dataclass
class Api:
    """The application over fakes, and ways to call it."""

    settings: Settings
    store: Any = field(default_factory=MemoryStore)
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    catalog: Catalog = field(default_factory=packaged_catalog)

    def __post_init__(self) -> None:
        self.platform = FakePlatform(self.store, self.catalog)
        self.inference = FakeInference()
        self._numbers = itertools.count()
        self.app = create_app(
            self.platform,
            self.store,
            self.settings,
            lambda: f"uploads/{next(self._numbers)}",
            self.max_upload_bytes,
            catalog=self.catalog,
            inference=self.inference,
        )

    def client(self, key: str | None = "sk_writer") -> httpx.AsyncClient:
        """Return a client that calls the application in this process, as the owner of ``key``."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://platform",
            headers=headers,
        )

    def have(self, *models: ModelState) -> None:
        """Let the platform have custom models."""
        for state in models:
            self.platform.models[state.manifest.namespace_id, state.manifest.model_id] = state

    def kept(self) -> set[str]:
        """Return the keys of everything in the store."""
        return {blob.key for blob in self.store.list("")}


class Exchange:
    """One request driven by hand: the test decides when each body message arrives and sees what was read."""

    def __init__(self, app: Any, method: str, path: str, headers: dict[str, str], body: AsyncIterator[bytes]) -> None:
        self._app = app
        self._body = body
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("platform", 80),
        }
        self.read_bytes = 0
        self.messages: list[dict[str, Any]] = []

    async def run(self) -> None:
        """Serve the request to its end."""
        await self._app(self.scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        try:
            chunk = await anext(self._body)
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        except ConnectionError:
            return {"type": "http.disconnect"}
        self.read_bytes += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def _send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int | None:
        """The status of the answer, None while there is none."""
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer, names in lower case."""
        return {name.decode().lower(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        """The body of the answer."""
        return b"".join(message.get("body", b"") for message in self.messages)


@pytest.fixture
def anyio_backend() -> str:
    """The one event loop the platform runs on."""
    return "asyncio"


@pytest.fixture
def settings() -> Settings:
    """Default settings, whatever the environment of the test run says."""
    return Settings(idle_timeout_s=30.0)


@pytest.fixture
def api(settings: Settings) -> Api:
    """The application over a memory store."""
    return Api(settings)


@pytest.fixture
def make_api() -> Callable[..., Api]:
    """Build the application with settings or a store of the test's own."""

    def make(
        *, store: Any = None, max_upload_bytes: int = MAX_UPLOAD_BYTES, catalog: Catalog | None = None, **settings: Any
    ) -> Api:
        return Api(
            Settings(**settings),
            store if store is not None else MemoryStore(),
            max_upload_bytes,
            catalog if catalog is not None else packaged_catalog(),
        )

    return make


@pytest.fixture
def exchange() -> type[Exchange]:
    """Drive one request by hand."""
    return Exchange
