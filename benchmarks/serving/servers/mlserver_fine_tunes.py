"""MLServer's custom runtime for a model whose directory its `model-settings.json` names.

mlserver start FOLDER
"""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Embed(MLModel):
    """Answers a BYTES tensor of texts with an FP32 tensor of their vectors."""

    async def load(self) -> bool:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        self._model = SentenceTransformer(self.settings.parameters.uri, device="cpu")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        vectors = self._model.encode(list(texts), show_progress_bar=False)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("embedding", vectors)])
