"""``POST /models/{namespace}/{model}``: the endpoint of a deployed custom model."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mixpeek_ray.api.dependencies import (
    CurrentPrincipal,
    NamespacePath,
    ReferencePath,
    model_reference,
    plausible_namespace,
)
from mixpeek_ray.api.disconnect import WhileConnected
from mixpeek_ray.api.inference_request import INFERENCE_ERRORS, blaming, documented, read_body
from mixpeek_ray.api.predict_body import PredictRequest, PredictResponse, asked_of
from mixpeek_ray.api.predict_ports import ModelServing, NamedModel
from mixpeek_ray.api.predict_presenters import present_prediction
from mixpeek_ray.api.sticky import MODEL_HEADER, sticky_of


def build_predict_router(serving: ModelServing) -> APIRouter:
    """Return ``/models/{namespace_id}/{model_id}``."""
    router = APIRouter(prefix="/models", tags=["Custom models"], responses=INFERENCE_ERRORS)

    @router.post("/{namespace_id}/{model_id}", response_model=PredictResponse, openapi_extra=documented(PredictRequest))
    async def predict(
        request: Request, principal: CurrentPrincipal, namespace_id: NamespacePath, model_id: ReferencePath
    ) -> Response:
        """Ask a deployed model, or the version behind an alias: inputs in, outputs back, in its own terms."""
        reference = model_reference(plausible_namespace(namespace_id), model_id)
        body = await read_body(request, PredictRequest)
        named = NamedModel(namespace_id=namespace_id, reference=reference, sticky=sticky_of(request))
        async with WhileConnected(request.receive), serving.use(principal, named) as model:
            asked = asked_of(model.ref, model.spec, body)
            with blaming("inputs"):
                outputs = await model.compute(asked.inputs, asked.parameters)
        answer = present_prediction(model, asked, outputs)
        answer.headers[MODEL_HEADER] = model.ref.model_id
        return answer

    return router
