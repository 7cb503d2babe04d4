"""Models of every family, held against ``from_pretrained`` on the same directory: same outputs, weights as views."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mixpeek_ray.core.errors import InvalidWeightsError

Tokenizers = dict[str, Callable[[], Any]]
Deploy = Callable[[Path], Any]

TEXTS = ["hello world", "no"]
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def clip(tokens: Tokenizers) -> tuple[Any, Any]:
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**SIZES, "projection_dim": 16, "bos_token_id": 2, "eos_token_id": 3},
        vision_config=vision,
        projection_dim=16,
    )
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPModel(config), transformers.CLIPProcessor(images, tokens["wordpiece"]())


def whisper(_tokens: Tokenizers) -> tuple[Any, Any]:
    config = transformers.WhisperConfig(
        vocab_size=SIZES["vocab_size"], d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=32, pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
        suppress_tokens=[7], begin_suppress_tokens=[8],
    )  # fmt: skip
    features = transformers.WhisperFeatureExtractor(chunk_length=1)
    return transformers.WhisperForConditionalGeneration(config), features


def t5(tokens: Tokenizers) -> tuple[Any, Any]:
    config = transformers.T5Config(
        vocab_size=SIZES["vocab_size"], d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), tokens["unigram"]()


def causal(tokens: Tokenizers) -> tuple[Any, Any]:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config), tokens["bpe"]()


FAMILIES: dict[str, Callable[[Tokenizers], tuple[Any, Any]]] = {
    "BERT": lambda tokens: (transformers.BertModel(transformers.BertConfig(**SIZES)), tokens["wordpiece"]()),
    "BERT with a masked-word head": lambda tokens: (
        transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)), tokens["wordpiece"]()
    ),
    "BERT cross-encoder": lambda tokens: (
        transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=1)),
        tokens["wordpiece"](),
    ),
    "XLM-R": lambda tokens: (transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**SIZES)), tokens["unigram"]()),
    "XLM-R reranker": lambda tokens: (
        transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**SIZES, num_labels=1)),
        tokens["unigram"](),
    ),
    "ModernBERT": lambda tokens: (
        transformers.ModernBertModel(
            transformers.ModernBertConfig(**SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
        ),
        tokens["wordpiece"](),
    ),
    "CLIP": clip,
    "Whisper": whisper,
    "T5": t5,
    "causal with tied weights": causal,
}  # fmt: skip


@pytest.fixture
def save(tmp_path: Path, tokenizers: Tokenizers, randomized: Callable[[Any], Any]) -> Callable[..., Path]:
    def save_family(family: str, **options: Any) -> Path:
        folder = tmp_path / "saved"
        model, processor = FAMILIES[family](tokenizers)
        randomized(model).save_pretrained(folder, **options)
        processor.save_pretrained(folder)
        return folder

    return save_family


def inputs_for(model: Any, processor: Any) -> dict[str, Any]:
    if "Whisper" in type(model).__name__:
        return {"input_features": torch.randn(1, 80, 100), "decoder_input_ids": torch.tensor([[2, 5, 9]])}
    if "CLIP" in type(model).__name__:
        image = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        return dict(processor(text=TEXTS, images=[image], return_tensors="pt", padding=True))
    inputs = dict(processor(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False))
    return {**inputs, "decoder_input_ids": torch.tensor([[0, 3], [0, 4]])} if "T5" in type(model).__name__ else inputs


def outputs_of(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = model(**inputs, return_dict=True)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def assert_same(loaded: Any, reference: Any, inputs: dict[str, Any]) -> None:
    # Some kernels add in an order that depends on where a matrix begins: a copy begins on 64 bytes, as packed ones do.
    expected, found = outputs_of(copy.deepcopy(reference), inputs), outputs_of(loaded, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_from_pretrained_does(family: str, save: Callable[..., Path], deploy: Deploy) -> None:
    folder = save(family)
    deployed = deploy(folder)
    model, processor = deployed.model.load()
    reference = type(model).from_pretrained(folder)
    assert deployed.opened.architecture == type(model).__name__ == reference.config.architectures[0]
    assert not model.training
    assert_same(model, reference, inputs_for(reference, transformers.AutoProcessor.from_pretrained(folder)))
    assert type(processor) is type(transformers.AutoProcessor.from_pretrained(folder))
    # transformers makes its own copy of a bias that is tied to its head's.
    assert deployed.copied(model) in ([], ["cls.predictions.bias"])


@pytest.mark.parametrize("family", ["causal with tied weights", "Whisper", "T5"])
def test_texts_are_generated_with_the_saved_settings(family: str, save: Callable[..., Path], deploy: Deploy) -> None:
    folder = save(family)
    model, _ = deploy(folder).model.load()
    reference = type(model).from_pretrained(folder)
    assert model.generation_config.to_dict() == reference.generation_config.to_dict()
    inputs = inputs_for(reference, transformers.AutoProcessor.from_pretrained(folder))
    inputs.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **settings), reference.generate(**inputs, **settings))


def test_tied_weights_stay_one_tensor(save: Callable[..., Path], deploy: Deploy) -> None:
    deployed = deploy(save("causal with tied weights"))
    model = deployed.model.model()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert deployed.is_view(model.lm_head.weight)


def test_shards_are_put_together(save: Callable[..., Path], deploy: Deploy) -> None:
    folder = save("BERT", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    deployed = deploy(folder)
    model, tokenizer = deployed.model.load()
    assert_same(model, transformers.BertModel.from_pretrained(folder), inputs_for(model, tokenizer))
    assert not deployed.copied(model)


def test_pytorch_weights_open(save: Callable[..., Path], deploy: Deploy) -> None:
    folder = save("BERT")
    reference = transformers.BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    deployed = deploy(folder)
    model, tokenizer = deployed.model.load()
    assert_same(model, reference, inputs_for(model, tokenizer))
    assert not deployed.copied(model)


def test_names_from_before_are_understood(save: Callable[..., Path], deploy: Deploy) -> None:
    """BERT's own checkpoints: `gamma` and `beta`, the base model below `bert.`, heads that AutoModel drops."""
    folder = save("BERT")
    reference = transformers.BertModel.from_pretrained(folder)
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in reference.state_dict().items()
    }
    (folder / "model.safetensors").unlink()
    torch.save({**renamed, "linear.weight": torch.ones(8, 32)}, folder / "pytorch_model.bin")
    deployed = deploy(folder)
    model, tokenizer = deployed.model.load()
    assert_same(model, reference, inputs_for(model, tokenizer))
    assert not deployed.copied(model)
    assert deployed.is_view(deployed.model.state_dict["linear.weight"])


def test_an_architecture_of_the_authors_own_falls_back_to_the_base_model(
    save: Callable[..., Path], deploy: Deploy
) -> None:
    folder = save("BERT")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("BertModel", "HF_ColBERT"))
    assert type(deploy(folder).model.model()) is transformers.BertModel


@pytest.mark.parametrize("name", ["AutoModelForMaskedLM", "AutoModel", "BertForMaskedLM"])
def test_serving_code_chooses_the_class(name: str, save: Callable[..., Path], deploy: Deploy) -> None:
    folder = save("BERT with a masked-word head")
    model = deploy(folder).model.model(getattr(transformers, name))
    assert type(model) is type(getattr(transformers, name).from_pretrained(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_converts_on_demand(
    dtype: torch.dtype, save: Callable[..., Path], deploy: Deploy
) -> None:
    folder = save("BERT")
    transformers.BertModel.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    deployed = deploy(folder)
    model, tokenizer = deployed.model.load()
    assert model.dtype == dtype
    assert not deployed.copied(model)
    assert_same(model, transformers.BertModel.from_pretrained(folder), inputs_for(model, tokenizer))
    assert deployed.model.model(dtype=torch.float32).dtype == torch.float32


def test_without_a_tokenizer_there_is_none(save: Callable[..., Path], deploy: Deploy) -> None:
    folder = save("BERT")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert deploy(folder).model.load()[1] is None


def test_an_optimizer_step_stays_in_its_worker(save: Callable[..., Path], deploy: Deploy, tmp_path: Path) -> None:
    deployed = deploy(save("BERT cross-encoder"))
    (packed,) = tmp_path.glob("packed-*")
    before = packed.read_bytes()
    model, tokenizer = deployed.model.load()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()(**inputs_for(model, tokenizer), labels=torch.ones(2)).loss.backward()
    optimizer.step()
    assert deployed.is_view(model.classifier.weight)
    assert not torch.equal(model.classifier.bias, torch.frombuffer(bytearray(before), dtype=torch.float32)[:1])
    assert packed.read_bytes() == before
    assert bytes(deployed.memory) != before


def test_small_files_lie_on_the_node_once_and_cannot_be_changed(
    save: Callable[..., Path], deploy: Deploy, spool: Path
) -> None:
    folder = save("BERT")
    deployed = deploy(folder)
    path = deployed.model.path
    assert path.is_relative_to(spool)
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o400}
    assert deployed.model.config.hidden_size == 32


@pytest.mark.parametrize("change", [{"hidden_size": 2**20}, {"vocab_size": 2**33}, {"max_position_embeddings": 2**34}])
def test_a_config_far_larger_than_its_weights_takes_no_memory(
    change: dict[str, int], save: Callable[..., Path], deploy: Deploy
) -> None:
    folder = save("BERT")
    transformers.BertConfig(**{**SIZES, **change}, architectures=["BertModel"]).save_pretrained(folder)
    with pytest.raises(InvalidWeightsError, match="numbers, but the weights hold"):
        deploy(folder).model.load()


def test_a_model_somewhat_larger_than_its_weights_gets_new_heads(save: Callable[..., Path], deploy: Deploy) -> None:
    model = deploy(save("BERT")).model.model(transformers.BertForSequenceClassification)
    assert model.classifier.weight.shape == (2, 32)
