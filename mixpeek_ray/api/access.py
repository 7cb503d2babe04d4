"""Who may call what: one pure function from method and path to what the caller must show."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import PermissionDeniedError, TierRequiredError
from mixpeek_ray.core.records import Principal, Role, Tier

_OPEN_TREES = (
    "/v1/health",
    "/v2/health",
    "/v1/feature-extractors",
    "/v1/collections/features/extractors",
    "/v1/retrievers/stages",
)
# Custom models by the Open Inference Protocol, which takes tensors as they are, and all endpoints of custom models.
_BINARY_ENDPOINTS = "/v2/models/"
_ENDPOINTS = ("/models/", _BINARY_ENDPOINTS)
_INFERENCE_PATHS = frozenset(
    {
        "/v1/embeddings",
        "/v1/embeddings/sparse",
        "/v1/embeddings/multi-vector",
        "/v1/embeddings/hybrid",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/inference",
    }
)
# Longer than any id there is: a 64-character name, a version of 29 characters and what joins them.
_PLAUSIBLE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a request must show before any of its body is read."""

    needs_key: bool
    role: Role
    # Custom models are an Enterprise feature.
    needs_enterprise: bool = False
    # Of a body that is no archive.
    max_body_bytes: int = limits.MAX_JSON_BODY_BYTES
    # Uploads alone may carry an archive as their body.
    is_upload: bool = False
    # A signed URL does in place of a key: clients send their parts without one, as to an object store.
    takes_signed_url: bool = False


def access_for(method: str, path: str) -> Access:
    """Return what ``method`` on the decoded ``path`` asks for; whatever is not listed as open needs a key."""
    role = Role.READ if method in _READING_METHODS else Role.WRITE
    if not path.startswith(("/v1/", "/v2/", "/models/")) or _is_open(path):
        return Access(needs_key=False, role=role)
    if path in _INFERENCE_PATHS:
        # Nothing is changed by it, so a key that may read may compute.
        return Access(needs_key=True, role=Role.READ, max_body_bytes=limits.MAX_INFERENCE_BODY_BYTES)
    if path.startswith(_ENDPOINTS):
        is_binary = path.startswith(_BINARY_ENDPOINTS)
        most = limits.MAX_TENSOR_BODY_BYTES if is_binary else limits.MAX_INFERENCE_BODY_BYTES
        return Access(needs_key=True, role=Role.READ, needs_enterprise=True, max_body_bytes=most)
    match path.split("/")[2:]:
        case ["namespaces", _, "models", *rest]:
            is_part = _is_part(method, rest)
            is_upload = is_part or (method == "POST" and not rest)
            return Access(
                needs_key=True, role=role, needs_enterprise=True, is_upload=is_upload, takes_signed_url=is_part
            )
        case ["namespaces", _, "aliases", *_]:
            return Access(needs_key=True, role=role, needs_enterprise=True)
        case ["models", "uploads", *rest]:
            is_part = _is_part(method, ["uploads", *rest])
            return Access(needs_key=True, role=role, needs_enterprise=True, is_upload=is_part, takes_signed_url=is_part)
    return Access(needs_key=True, role=role)


def check_access(access: Access, principal: Principal) -> None:
    """Raise ``PermissionDeniedError`` or ``TierRequiredError`` unless ``principal`` may pass.

    Only the key decides, never the namespace in the path: so the answer tells nothing about other organisations.
    """
    if not principal.role.allows(access.role):
        raise PermissionDeniedError(
            f"This key may {principal.role}, and the request needs {access.role}. Use a key with that role.",
            needed_role=access.role.value,
        )
    if access.needs_enterprise and principal.organization.tier is not Tier.ENTERPRISE:
        raise TierRequiredError(
            "Custom models require Enterprise tier. Upgrade the organization's plan, or contact sales to do so.",
            needed_tier=Tier.ENTERPRISE.value,
            tier=principal.organization.tier.value,
        )


def is_plausible_id(text: str) -> bool:
    """Tell whether ``text`` could be an id at all, so that it may be looked up or logged."""
    return _PLAUSIBLE_ID.fullmatch(text) is not None


def _is_part(method: str, below_models: list[str]) -> bool:
    match below_models:
        case ["uploads", _, "parts", _]:
            return method == "PUT"
    return False


def _is_open(path: str) -> bool:
    return any(path == tree or path.startswith(tree + "/") for tree in _OPEN_TREES)
