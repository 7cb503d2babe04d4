"""Running out of disk, said in the platform's own words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mixpeek_ray.core.errors import DiskFullError

# EFBIG is what RLIMIT_FSIZE gives inside the sandbox, whose limit is set to what the disk may be asked for.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_full_as_error() -> Iterator[None]:
    """Turn an operating-system "no space left" inside the block into ``DiskFullError``; pass on everything else."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError("The disk filled up while an archive was unpacked; free space and retry.") from error
