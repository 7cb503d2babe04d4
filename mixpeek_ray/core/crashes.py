"""Models that crash the process which computes them, and what that leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mixpeek_ray.core.errors import ModelQuarantinedError

# Once may be a broken machine, or a model beside it; twice is the model.
MAX_CRASHES = 2


@dataclass(frozen=True, kw_only=True)
class ModelCrash:
    """The end of a process in the middle of a model's native code."""

    # Given when the process began to work, so that a crash that is told twice counts once.
    crash_id: str
    at: datetime
    # What the kernel called it, such as `Segmentation fault`.
    reason: str


def quarantined(model_id: str, crashes: Sequence[ModelCrash]) -> ModelQuarantinedError:
    """Return what is said of a model with these crashes, the last one last."""
    last = crashes[-1]
    return ModelQuarantinedError(
        f"Model {model_id!a} is quarantined: its native code ended the process that computed it {len(crashes)} times, "
        f"last at {last.at:%Y-%m-%d %H:%M:%S} UTC ({last.reason}). Upload a corrected version, or deploy this one "
        "again to try it once more.",
        model_id=model_id,
    )
