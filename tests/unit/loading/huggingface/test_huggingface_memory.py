"""What a worker keeps to itself of a model that the node holds already: less than 5% of the weights."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.packed import pack

# Loads a small model, so that what the libraries themselves take is counted before; then the one in question.
WORKER = """
import mmap, pickle, sys
import torch
from mixpeek_ray.formats.packed import view
from mixpeek_ray.loading.huggingface import open_huggingface

def private_bytes():
    # Not Private_Dirty: it counts pages of a file that was just written, too.
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:")) * 1024

def load(name):
    with open(f"{name}.pickle", "rb") as description, open(name, "rb") as data:
        index, companions = pickle.load(description)
        memory = mmap.mmap(data.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    model, _ = open_huggingface(view(index, memory), companions, name.rpartition("/")[2]).load()
    with torch.no_grad():
        model(input_ids=torch.ones((1, 4), dtype=torch.int64))
    return model

torch.set_num_threads(1)
small = load(sys.argv[1])
before = private_bytes()
large = load(sys.argv[2])
print(private_bytes() - before)
"""


@pytest.mark.parametrize("family", ["BERT", "causal with tied weights"])
def test_a_worker_shares_the_node_s_weights(
    family: str, tmp_path: Path, spool: Path, deploy: Callable[[Path], Any]
) -> None:
    paths = []
    for hidden_size, layers in ((32, 1), (512, 8)):
        sizes: dict[str, Any] = {
            "vocab_size": 16_384, "hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": 8,
            "intermediate_size": 4 * hidden_size,
        }  # fmt: skip
        model = (
            transformers.BertModel(transformers.BertConfig(**sizes))
            if family == "BERT"
            else transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True))
        )
        folder = tmp_path / f"saved-{hidden_size}"
        model.save_pretrained(folder)
        opened = deploy(folder).opened
        paths.append(tmp_path / f"weights-{hidden_size}")
        index = pack(opened.tensors, paths[-1])
        Path(f"{paths[-1]}.pickle").write_bytes(pickle.dumps((index, opened.companions)))
    assert index.total_bytes >= 64 * MIB
    command = [sys.executable, "-c", WORKER, *map(str, paths)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    assert int(printed) < index.total_bytes * 0.05
