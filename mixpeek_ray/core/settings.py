"""The only reader of the environment: every ``MIXPEEK_*`` setting, typed and explained."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from mixpeek_ray.core import limits
from mixpeek_ray.core.placement import PoolLimit


class Settings(BaseSettings):
    """Platform settings; each field is the environment variable ``MIXPEEK_<FIELD NAME>``."""

    model_config = SettingsConfigDict(env_prefix="MIXPEEK_", frozen=True)

    home: Path = Field(
        default=Path(".mixpeek"),
        description="Folder for everything the platform keeps on this machine: store, keys, run state, logs.",
    )
    host: str = Field(default="127.0.0.1", description="Address the HTTP ingress listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port the HTTP ingress listens on.")
    store_url: str | None = Field(
        default=None, description="fsspec URL of the durable store; default: the folder `store` in the home."
    )
    secret_file: Path | None = Field(
        default=None,
        description="File with the secret that keys are hashed with; default: `secret` in the home, made once.",
    )
    namespace: str | None = Field(default=None, description="Namespace whose models a plugin loads when it names none.")
    dev_organization: bool = Field(
        default=True,
        description="On an empty store, create a development organisation and `dev-api-key` in the home.",
    )
    spool_dir: Path | None = Field(
        default=None, description="Node-local folder for unpacking; default: the system's temporary folder."
    )
    check_on_upload_max_bytes: int = Field(
        default=128 * limits.MIB,
        ge=0,
        description="Archives up to this many bytes are checked before their upload is acknowledged.",
    )
    buffered_ingress_max_upload_bytes: int = Field(
        default=512 * limits.MIB,
        ge=0,
        description="Largest upload when Serve runs without HAProxy, which holds whole bodies in memory.",
    )
    upload_lifetime_s: float = Field(
        default=24 * 3600.0, gt=0, description="Seconds until a resumable upload that was not confirmed is removed."
    )
    model_catalog: Path | None = Field(
        default=None, description="YAML file that describes the built-in models; default: `configs/models.yaml`."
    )
    models_dir: Path | None = Field(
        default=None,
        description="Folder with weights of built-in models: a Hugging Face directory for each, by its name.",
    )
    model_idle_s: float = Field(
        default=900.0, gt=0, description="Seconds until the weights of a built-in model that nobody uses are let go."
    )
    warm_models: str | None = Field(
        default=None,
        description="Built-in models that are loaded when the platform starts and stay, by name, between commas.",
    )
    max_queue_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds of others' work that an inference request may have to wait for; beyond, it is refused.",
    )
    pool_max_cpus: float = Field(
        default=limits.DEFAULT_CPUS,
        gt=0,
        description="Most CPUs that a deployed model may ask for and still share the pool's replicas; beyond, or with "
        "a GPU, it has an application of its own.",
    )
    pool_max_memory_gb: float = Field(
        default=limits.DEFAULT_MEMORY_BYTES / limits.GIB, gt=0, description="The same for its `memory_gb`."
    )
    dedicated_max_replicas: int = Field(
        default=4, ge=1, description="Most replicas of a model with an application of its own; each has what it asks."
    )
    replica_wait_s: float = Field(
        default=60.0, gt=0, description="Seconds that a request to such a model may wait for its replica to start."
    )
    analytics_days: int = Field(default=30, ge=1, description="Days that figures about requests are kept.")
    analytics_flush_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds between two reports of a replica's figures: what it loses of them if it is killed.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="URL that traces of requests are sent to by OTLP over HTTP, such as `http://collector:4318/v1/traces`.",
    )
    trace_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of requests that are traced, of those whose caller does not say (`traceparent`).",
    )
    idle_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds a client may send nothing in the middle of a request."
    )
    registry_timeout_s: float = Field(
        default=4.0, gt=0, description="Seconds to wait for the model registry before answering 503."
    )
    deploy_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds a waiting deploy call blocks before it answers `pending`."
    )
    load_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds a loader retries while weights are not there yet."
    )
    onnx_providers: str = Field(
        default="CPUExecutionProvider",
        description="onnxruntime's execution providers for ONNX models, in order of preference, between commas.",
    )
    onnx_threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of an ONNX session; default: `OMP_NUM_THREADS`, which Ray sets to a worker's CPUs.",
    )
    dashboard_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of Ray's dashboard and job API, on loopback; default: 8265, or the next free one.",
    )
    object_store_bytes: int | None = Field(
        default=None, ge=80 * limits.MIB, description="Size of Ray's object store; default: Ray's own choice."
    )
    log_level: str = Field(default="INFO", description="Lowest level that is logged.")

    @property
    def home_path(self) -> Path:
        """The home as an absolute path."""
        return self.home.expanduser().resolve()

    @property
    def resolved_store_url(self) -> str:
        """The store's URL with the default filled in."""
        return self.store_url or (self.home_path / "store").as_uri()

    @property
    def onnx_provider_names(self) -> tuple[str, ...]:
        """The execution providers one by one."""
        return tuple(name.strip() for name in self.onnx_providers.split(",") if name.strip())

    @property
    def warm_model_names(self) -> tuple[str, ...]:
        """The warm models one by one."""
        return tuple(name.strip() for name in (self.warm_models or "").split(",") if name.strip())

    @property
    def onnx_intra_op_threads(self) -> int:
        """Threads of an ONNX session; 0 where nothing says how many, and onnxruntime takes every core."""
        # OpenMP allows a number for each level of nesting: "4,2".
        outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        return self.onnx_threads or (int(outermost) if outermost.isdecimal() else 0)

    @property
    def pool_limit(self) -> PoolLimit:
        """What a deployed model may ask for and still be served by the pool."""
        return PoolLimit(num_cpus=self.pool_max_cpus, memory_bytes=int(self.pool_max_memory_gb * limits.GIB))

    @property
    def secret_path(self) -> Path:
        """Where the key-hashing secret lies."""
        return self.secret_file or self.home_path / "secret"

    @property
    def dev_key_path(self) -> Path:
        """Where the development organisation's key is left."""
        return self.home_path / "dev-api-key"


@cache
def get_settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()
