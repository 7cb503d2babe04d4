"""Where everything durable lies in the store.

::

    namespaces/{namespace_id}/namespace.json                        Namespace
    namespaces/{namespace_id}/models/{model_id}/manifest.json       ModelManifest: create-only, written last
    namespaces/{namespace_id}/models/{model_id}/deployment.json     DeploymentMarker: there when it should be deployed
    namespaces/{namespace_id}/aliases/{name}/{alias}.alias.json     ModelAlias: what it points to, and pointed to before
    archives/{sha256}.tar.gz                                        an uploaded archive, shared by equal uploads
    uploads/{upload_id}                                             an archive before its manifest: temporary
    resumable/{upload_id}/...                                       a resumable upload: see store.uploads
    analytics/traffic/...                                           what requests came: see analytics.journal
    auth/organizations/{organization_id}.json                       Organization
    auth/keys/{key_id}.json                                         ApiKey

A model version exists exactly when its manifest does.
"""

from __future__ import annotations

import secrets

from mixpeek_ray.core.aliases import AliasRef

NAMESPACES = "namespaces/"
ARCHIVES = "archives/"
UPLOADS = "uploads/"
TRAFFIC = "analytics/traffic/"
ORGANIZATIONS = "auth/organizations/"
KEYS = "auth/keys/"

NAMESPACE_FILE = "/namespace.json"
MANIFEST_FILE = "/manifest.json"
DEPLOYMENT_FILE = "/deployment.json"
ALIAS_SUFFIX = ".alias.json"
RECORD_SUFFIX = ".json"
_ARCHIVE_SUFFIX = ".tar.gz"


def namespace_key(namespace_id: str) -> str:
    """Return where a namespace's record lies."""
    return f"{NAMESPACES}{namespace_id}{NAMESPACE_FILE}"


def manifest_key(namespace_id: str, model_id: str) -> str:
    """Return where a model version's manifest lies."""
    return f"{NAMESPACES}{namespace_id}/models/{model_id}{MANIFEST_FILE}"


def deployment_key(namespace_id: str, model_id: str) -> str:
    """Return where a model version's deployment marker lies."""
    return f"{NAMESPACES}{namespace_id}/models/{model_id}{DEPLOYMENT_FILE}"


def alias_key(ref: AliasRef) -> str:
    """Return where an alias lies."""
    return f"{NAMESPACES}{ref.namespace_id}/aliases/{ref.name}/{ref.alias}{ALIAS_SUFFIX}"


def organization_key(organization_id: str) -> str:
    """Return where an organisation's record lies."""
    return f"{ORGANIZATIONS}{organization_id}{RECORD_SUFFIX}"


def api_key_key(key_id: str) -> str:
    """Return where an API key's record lies."""
    return f"{KEYS}{key_id}{RECORD_SUFFIX}"


def archive_key(sha256: str) -> str:
    """Return where the archive whose bytes hash to ``sha256`` (lower-case hex) lies."""
    return f"{ARCHIVES}{sha256}{_ARCHIVE_SUFFIX}"


def archive_sha256(key: str) -> str:
    """Return the hash in an archive's key."""
    return key.removeprefix(ARCHIVES).removesuffix(_ARCHIVE_SUFFIX)


def new_upload_key() -> str:
    """Return a fresh temporary key (128 random bits: also a capability, for it names bytes nobody else may claim)."""
    return f"{UPLOADS}{secrets.token_hex(16)}"
