"""Reads the bodies of inference requests: once, straight into what a route takes, and never into more than fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic import ValidationError as PydanticError
from pydantic_core import ErrorDetails

from mixpeek_ray.api.schemas import ErrorResponse
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import BodyTooLargeError, ValidationError

BodyT = TypeVar("BodyT", bound=BaseModel)

# What the inference routes may answer beside their results, for the API's description.
INFERENCE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (401, 403, 404, 408, 409, 413, 422, 429, 503)
}

# With more values than this in the body, a field that nobody knows is passed over rather than refused: each one would
# be an error of its own, and a million of them take a gigabyte.
_MAX_REFUSED_FIELDS = 100_000
# The field whose value may have one of several shapes; pydantic tells what each of them lacks.
_OF_SEVERAL_SHAPES = ("input",)
# What it says where a value, or a part of it, has another shape.
_WRONG_SHAPE = frozenset({"string_type", "list_type", "int_type"})


async def read_body(request: Request, kind: type[BodyT]) -> BodyT:
    """Return the request's JSON as ``kind``, whatever its Content-Type.

    FastAPI would parse it twice, into Python's objects first. Raises ``RequestValidationError`` naming the fields that
    are not allowed, and ``BodyTooLargeError``.
    """
    raw = await request.body()
    values = count_values(raw)
    if values > limits.MAX_INFERENCE_VALUES:
        raise BodyTooLargeError(
            f"The body holds more than {limits.MAX_INFERENCE_VALUES} values: send the inputs in several requests.",
            limit_values=limits.MAX_INFERENCE_VALUES,
        )
    try:
        return kind.model_validate_json(raw, extra="forbid" if values <= _MAX_REFUSED_FIELDS else "ignore")
    except PydanticError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    raise RequestValidationError([_told(kind, list(problems)) for _, problems in groupby(found, key=_place)])


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Name ``field`` of the body in errors about a request's inputs, which the models know by their index only."""
    try:
        yield
    except ValidationError as error:
        error.details.setdefault("field", field)
        raise


def documented(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what describes ``kind`` as a route's body: ``openapi_extra`` of a route that reads its body itself."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inlined(schema, definitions)}}
    return {"requestBody": {"required": True, "content": content}}


def count_values(raw: bytes) -> int:
    """Return at least how many values ``raw`` holds, before any of them takes memory.

    A comma comes between two values, a bracket before what a list or an object holds. Those in texts count too: prose
    has few of them.
    """
    return raw.count(b",") + 2 * (raw.count(b"[") + raw.count(b"{"))


def _place(problem: ErrorDetails) -> tuple[int | str, ...]:
    loc = problem["loc"]
    return loc[:1] if loc[:1] == _OF_SEVERAL_SHAPES else loc


def _told(kind: type[BaseModel], problems: Sequence[ErrorDetails]) -> dict[str, Any]:
    """Return one problem of a place: of several shapes', that of the shape which came nearest."""
    nearest = max(problems, key=lambda problem: (problem["type"] not in _WRONG_SHAPE, _indices(problem)))
    message = nearest["msg"]
    if len(problems) > 1 and nearest["type"] in _WRONG_SHAPE:
        message = f"Input should be {kind.model_fields[str(nearest['loc'][0])].description}"
    loc = ("body", *_place(nearest), *(_indices(nearest) if len(problems) > 1 else ()))
    return {"loc": loc, "msg": message, "type": nearest["type"]}


def _indices(problem: ErrorDetails) -> tuple[int, ...]:
    return tuple(part for part in problem["loc"] if isinstance(part, int))


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    # A route's own addition to the API's description has no place for definitions.
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _inlined({**definitions[name], **{key: schema[key] for key in schema if key != "$ref"}}, definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}
