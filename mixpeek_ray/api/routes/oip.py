"""The Open Inference Protocol: deployed custom models for Triton's and KServe's clients."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.dependencies import CurrentPrincipal
from mixpeek_ray.api.disconnect import WhileConnected
from mixpeek_ray.api.inference_request import INFERENCE_ERRORS, blaming
from mixpeek_ray.api.oip_protocol import (
    BINARY_EXTENSION,
    HEADER_LENGTH,
    describe_tensors,
    parse_request,
    write_response,
)
from mixpeek_ray.api.predict_ports import DescribedModel, ModelServing, NamedModel
from mixpeek_ray.api.sticky import MODEL_HEADER, sticky_of
from mixpeek_ray.core.aliases import parse_reference
from mixpeek_ray.core.errors import ModelNotFoundError
from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.servables.base import Parameters

OIP_MODELS = "/v2/models"

_PLATFORMS = {ModelKind.ONNX: "onnxruntime_onnx", ModelKind.TORCHSCRIPT: "pytorch_libtorch"}
_TRANSFORMERS = "pytorch_transformers"
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "examples": ["FP32", "INT64", "BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
_INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                        "parameters": {"type": "object"},
                    },
                }
            },
            # The same JSON, of the length that Inference-Header-Content-Length tells, and the tensors' bytes.
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def build_oip_server_router() -> APIRouter:
    """Return what the protocol asks of a server, for anybody."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("")
    async def server_metadata() -> dict[str, Any]:
        """Tell who serves the Open Inference Protocol here."""
        return {"name": "mixpeek-ray", "version": installed_version("mixpeek-ray"), "extensions": [BINARY_EXTENSION]}

    @router.get("/health/live")
    async def server_live() -> Response:
        """Answer: the server runs."""
        return Response()

    @router.get("/health/ready")
    async def server_ready() -> Response:
        """Answer: models may be asked. Which of them are deployed, each model's own `ready` tells."""
        return Response()

    return router


def build_oip_models_router(serving: ModelServing) -> APIRouter:
    """Return the routes below ``/v2/models``; a name is ``{namespace}/{model_id}``, its slash escaped or not.

    Or ``{namespace}/{name}@{alias}``: answers name the version that gave them.
    """
    router = APIRouter(prefix=OIP_MODELS, tags=["Open Inference Protocol"], responses=INFERENCE_ERRORS)

    # The longer path of each pair, next to the function, is tried first: a name may look like any part of a path.
    @router.post("/{name:path}/infer", openapi_extra=_INFER_BODY)
    @router.post("/{name:path}/versions/{version}/infer", openapi_extra=_INFER_BODY)
    async def infer(request: Request, principal: CurrentPrincipal, name: str, version: str | None = None) -> Response:
        """Compute with named tensors, in JSON or binary."""
        raw = await request.body()
        named = _named(request, name, version)
        async with WhileConnected(request.receive), serving.use(principal, named) as model:
            _check_version(model, version)
            asked = parse_request(raw, request.headers.get(HEADER_LENGTH), model.spec)
            with blaming("inputs"):
                outputs = await model.compute(asked.inputs, Parameters())
        body, json_length = write_response(model.ref.name, model.ref.version, asked, outputs)
        headers = {MODEL_HEADER: model.ref.model_id}
        if json_length is None:
            return Response(body, headers=headers, media_type="application/json")
        headers[HEADER_LENGTH] = str(json_length)
        return Response(body, headers=headers, media_type="application/octet-stream")

    @router.get("/{name:path}/ready")
    @router.get("/{name:path}/versions/{version}/ready")
    async def model_ready(
        request: Request, principal: CurrentPrincipal, name: str, version: str | None = None
    ) -> Response:
        """Answer 200 when the model is deployed and open."""
        model = await serving.describe(principal, _named(request, name, version))
        _check_version(model, version)
        return Response(headers={MODEL_HEADER: model.ref.model_id})

    @router.get("/{name:path}")
    @router.get("/{name:path}/versions/{version}")
    async def model_metadata(
        request: Request, principal: CurrentPrincipal, name: str, version: str | None = None
    ) -> Response:
        """Tell a model's inputs and outputs; -1 stands for an axis whose size varies."""
        model = await serving.describe(principal, _named(request, name, version))
        _check_version(model, version)
        return JSONResponse(
            {
                "name": model.ref.name,
                "versions": [model.ref.version],
                "platform": _PLATFORMS.get(model.ref.kind, _TRANSFORMERS),
                "inputs": describe_tensors(model.spec.inputs),
                "outputs": describe_tensors(model.spec.outputs),
            },
            headers={MODEL_HEADER: model.ref.model_id},
        )

    return router


def _named(request: Request, name: str, version: str | None) -> NamedModel:
    # A client that escapes a name which was escaped already leaves one %2F, and one %40.
    namespace_id, _, model = unquote(name).partition("/")
    reference = parse_reference(namespace_id, model) or model
    if not is_plausible_id(namespace_id) or (isinstance(reference, str) and not is_plausible_id(reference)):
        raise ModelNotFoundError(
            "There is no such model: a name is {namespace}/{model_id} or {namespace}/{name}@{alias}, with its slash or "
            "as %2F."
        )
    return NamedModel(namespace_id=namespace_id, reference=reference, sticky=sticky_of(request), version=version)


def _check_version(model: DescribedModel, version: str | None) -> None:
    if version is not None and version != model.ref.version:
        raise ModelNotFoundError(
            f"Model {model.ref.name!a} is version {model.ref.version}, and each version has an id of its own."
        )
