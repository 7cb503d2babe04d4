"""The header that makes a caller meet the same version behind an alias again, and the one that names the version."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from starlette.requests import Request

from mixpeek_ray.api.inference_ports import RerankRequest, TextRequest
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ValidationError

AskedT = TypeVar("AskedT", TextRequest, RerankRequest)

STICKY_HEADER = "X-Mixpeek-Sticky"
# In answers: the id of the model version that gave them.
MODEL_HEADER = "X-Mixpeek-Model"


def sticky_of(request: Request) -> str | None:
    """Return the request's ``X-Mixpeek-Sticky``, None without one. Raises ``ValidationError`` for one too long."""
    sticky = request.headers.get(STICKY_HEADER)
    if sticky is None or len(sticky) <= limits.MAX_STICKY_CHARS:
        return sticky
    message = f"{STICKY_HEADER} has at most {limits.MAX_STICKY_CHARS} characters: send a shorter text."
    found = {"loc": ["header", STICKY_HEADER], "msg": message, "type": "string_too_long"}
    raise ValidationError(message, validation_errors=[found])


def sticking(asked: AskedT, request: Request) -> AskedT:
    """Return what a model is asked, with the request's ``X-Mixpeek-Sticky``. Raises as ``sticky_of``."""
    return replace(asked, sticky=sticky_of(request))
