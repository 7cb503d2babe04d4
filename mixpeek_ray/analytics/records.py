"""What is counted of requests, and what is told of them; light, for every process of the platform imports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

# Where built-in models are counted: no namespace can be called so, for those begin with `ns_`.
BUILTIN = "builtin"
# What stands for the models that are too many to be counted one by one.
OTHER = "(other)"
# What stands for requests that named no model the caller may use.
UNKNOWN = "(unknown)"
_FIRST_ERROR_STATUS = 400
# Of a model id, the last groups are the version.
_VERSION_PARTS = 3


@dataclass(frozen=True, slots=True)
class TrafficKey:
    """Whose requests, to which model, with which outcome."""

    organization_id: str
    namespace_id: str
    model_name: str
    # MAJOR.MINOR.PATCH; empty for built-in models.
    version: str
    # The HTTP status, and the code of the error; empty for an answer.
    status: int
    error_code: str
    # Computed for nobody, beside another version's answer.
    is_shadow: bool = False

    @classmethod
    def of(
        cls, organization_id: str, model: str | None, status: int, error_code: str, *, is_shadow: bool = False
    ) -> Self:
        """Return the key of a request to ``model``: a built-in one's name, ``{namespace}/{model_id}``, or None."""
        if model is None:
            return cls(organization_id, BUILTIN, UNKNOWN, "", status, error_code, is_shadow)
        namespace_id, slash, model_id = model.partition("/")
        if not slash:
            return cls(organization_id, BUILTIN, model, "", status, error_code, is_shadow)
        name, *version = model_id.rsplit("_", _VERSION_PARTS)
        return cls(organization_id, namespace_id, name, ".".join(version), status, error_code, is_shadow)

    @property
    def is_error(self) -> bool:
        """Whether the request got no answer."""
        return self.status >= _FIRST_ERROR_STATUS

    @property
    def model_id(self) -> str:
        """The model's id within its namespace; a built-in one's name."""
        return f"{self.model_name}_{self.version.replace('.', '_')}" if self.version else self.model_name

    def without_model(self) -> TrafficKey:
        """Return the key under which the requests of too many models are counted together."""
        return replace(self, model_name=OTHER, version="")


@dataclass(frozen=True, kw_only=True)
class TrafficRow:
    """The requests of one key in one minute, or in one hour once a day is over."""

    # Seconds since 1970, UTC, when the minute or hour began.
    began_s: int
    key: TrafficKey
    requests: int
    items: int
    tokens: int
    # Seconds: of all requests together, and the longest.
    latency_s: float
    max_latency_s: float
    # Buckets and counts of ``LatencyHistogram``.
    latencies: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class TrafficBatch:
    """What a replica counted since its last batch. A batch that comes twice is counted once."""

    # The replica, and the number of its batch: ascending from 1.
    source: str
    sequence: int
    rows: tuple[TrafficRow, ...]
    # Seconds since 1970, before the first of its requests ended; 0.0: nobody knows.
    since_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Latencies of answered requests in seconds; mean and maximum are exact, quantiles within 1%."""

    count: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, kw_only=True)
class ModelPerformance:
    """How one version of a model did in a time."""

    namespace_id: str
    model_name: str
    model_id: str
    # None for built-in models.
    version: str | None
    # Shadow requests, which are told apart from those that were answered.
    is_shadow: bool
    requests: int
    errors: int
    # By error code, among them the errors that are the caller's own.
    error_codes: Mapping[str, int]
    # Those with a status from 500 up.
    server_errors: int
    items: int
    tokens: int
    latencies: Latencies
    window_s: float


@dataclass(frozen=True, kw_only=True)
class PerformanceBucket:
    """The latencies of a minute, hour, day, week or month."""

    began_at: datetime
    latencies: Latencies


@dataclass(frozen=True, kw_only=True)
class EnginePerformance:
    """How all models together did, over time and in sum."""

    start: datetime
    end: datetime
    # Oldest first; those without a request are left out.
    buckets: tuple[PerformanceBucket, ...]
    total: Latencies
