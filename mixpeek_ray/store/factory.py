"""From the store's URL to the store."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.store.base import BlobStore
from mixpeek_ray.store.local_store import LocalStore
from mixpeek_ray.store.memory_store import MemoryStore

_memory_stores: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def open_store(url: str) -> BlobStore:
    """Return the store that ``url`` names.

    A path or ``file://`` (made when missing), ``s3://bucket/prefix`` (``AWS_*`` environment), ``memory://name`` (one
    per name and process), or any other fsspec URL whose package is installed. Raises ``ValidationError`` when there is
    no such kind of store, ``StorageUnavailableError`` when a local folder cannot be made; remote stores are not asked.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _open_local(parts.netloc, parts.path)
    if "://" not in url:
        return LocalStore(Path(url).expanduser())
    if parts.scheme == "memory":
        with _memory_lock:
            return _memory_stores.setdefault(parts.netloc + parts.path.rstrip("/"), MemoryStore())
    if not parts.netloc:
        raise _refused(parts.scheme, "it names no bucket: write it as scheme://bucket/prefix")
    if parts.scheme in ("s3", "s3a"):
        # Imported when needed: s3fs and botocore take half a second that a local platform need not wait for.
        from mixpeek_ray.store.s3_store import S3Store

        return S3Store(_root_of(parts.netloc, parts.path))
    return _open_fsspec(parts.scheme, url)


def _open_local(host: str, path: str) -> BlobStore:
    if host not in ("", "localhost") or not path.startswith("/"):
        raise _refused("file", "it must be absolute: write it as file:///folder")
    return LocalStore(Path(unquote(path)))


def _open_fsspec(scheme: str, url: str) -> BlobStore:
    import fsspec

    from mixpeek_ray.store.fsspec_store import FsspecStore

    try:
        filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        raise _refused(scheme, "its fsspec package is not installed here: install it first") from None
    except ValueError:
        raise _refused(scheme, "no such kind of store is known: use file, s3 or another fsspec scheme") from None
    return FsspecStore(filesystem, root)


def _root_of(bucket: str, path: str) -> str:
    if "@" in bucket:
        raise _refused("s3", "it carries credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    return f"{bucket}/{path.strip('/')}".rstrip("/")


def _refused(scheme: str, reason: str) -> ValidationError:
    # Only the scheme is shown: the rest of the URL may hold a password.
    return ValidationError(
        f"MIXPEEK_STORE_URL begins with {scheme[:20] + '://'!a}, but {reason}.", setting="MIXPEEK_STORE_URL"
    )
