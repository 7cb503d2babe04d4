"""MLServer's custom runtime: adaptive batching in front of a worker process, `model-settings.json` beside it.

mlserver start FOLDER
"""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.servers.minilm import MiniLM


class Embed(MLModel):
    """Answers a BYTES tensor of texts with an FP32 tensor of their vectors."""

    async def load(self) -> bool:
        self._model = MiniLM()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("embedding", self._model.embed(texts))
        return InferenceResponse(model_name=self.name, outputs=[output])
