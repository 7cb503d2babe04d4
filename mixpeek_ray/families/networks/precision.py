"""What a node's CPU multiplies natively."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from mixpeek_ray.catalog.cards import Precision

# x86 with AVX512-BF16 or AMX, Arm with the bf16 extension: elsewhere bfloat16 is emulated and slower than float32.
_NATIVE_BF16 = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")


@cache
def multiplies_bfloat16() -> bool:
    """Tell whether this machine's CPU has bfloat16 products; False where that cannot be known."""
    try:
        return _NATIVE_BF16.search(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


def matrix_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of matrix products on this machine."""
    if precision is Precision.BFLOAT16 or (precision is Precision.AUTO and multiplies_bfloat16()):
        return torch.bfloat16
    return torch.float32
