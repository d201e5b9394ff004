"""Folders, shards, tokenizers and special tokens."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import ResNetConfig
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model, sources
from hwpq_tvm.importers.tokenizer_files import read_tokenizer_files
from tests.tiny_hf import save, tiny_llama, tiny_qwen2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_shards_gives_the_weights_of_the_model(tmp_path, dtype):
    model = tiny_qwen2(num_hidden_layers=1, tie_word_embeddings=dtype is torch.float32)
    save(model, tmp_path, dtype=dtype, shards=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    imported = import_model(tmp_path, max_seq_len=8)
    names = [variable.name for variable in imported.module["decode"].params[3:]]
    parameters = dict(model.named_parameters())
    assert {*names} == {*parameters, "model.rotary_emb.inv_freq"}
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(imported.parameters.load(name), parameter.detach().float().numpy())
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    metadata = imported.metadata
    assert (metadata.source, metadata.source_format, metadata.source_bytes) == (str(tmp_path), "safetensors", size)
    assert (metadata.architecture, metadata.causal_lm.vocab_size) == ("Qwen2ForCausalLM", 101)
    assert (metadata.causal_lm.eos_token_ids, metadata.causal_lm.bos_token_id) == ((2,), 1)


def test_weights_are_read_one_by_one(tmp_path, monkeypatch):
    save(tiny_llama(num_hidden_layers=1), tmp_path)
    opened = []
    stock = sources.safe_open

    class Recording:
        """A file that tells which tensors were read."""

        def __init__(self, *args, **kwargs):
            self.file = stock(*args, **kwargs)

        def __enter__(self):
            self.entered = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            opened.append(name)
            return self.entered.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self.entered, name)

    monkeypatch.setattr(sources, "safe_open", Recording)
    imported = import_model(tmp_path, max_seq_len=8)
    assert opened == []
    imported.parameters.load("model.layers.0.mlp.down_proj.weight")
    assert opened == ["model.layers.0.mlp.down_proj.weight"]


def test_a_tied_weight_is_found_under_any_of_its_names(tmp_path):
    from safetensors.torch import save_file

    model = tiny_llama(tie_word_embeddings=True, num_hidden_layers=1)
    save(model, tmp_path)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    imported = import_model(tmp_path, max_seq_len=8)
    loaded = imported.parameters.load("model.embed_tokens.weight")
    np.testing.assert_array_equal(loaded, model.lm_head.weight.detach().numpy())
    function = imported.module["prefill"]
    uses = [
        binding.value.op.name
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and function.params[4].same_as(binding.value.args[0])
    ]
    assert function.params[4].name == "model.embed_tokens.weight"
    assert uses == ["relax.take", "relax.permute_dims"]


def test_special_tokens_of_the_generation_config_go_first(tmp_path):
    model = tiny_llama(num_hidden_layers=1)
    model.generation_config.eos_token_id = [7, 9]
    save(model, tmp_path)
    for imported in (import_model(tmp_path, max_seq_len=8), import_model(model, max_seq_len=8)):
        assert (imported.metadata.causal_lm.eos_token_ids, imported.metadata.causal_lm.bos_token_id) == ((7, 9), 1)


def test_without_weights_a_configuration_is_enough(tmp_path):
    save(tiny_llama(num_hidden_layers=1), tmp_path)
    with_weights = import_model(tmp_path, max_seq_len=8, needs_weights=False)
    assert with_weights.metadata.source_bytes > 0 and with_weights.notes == ()
    (tmp_path / "model.safetensors").unlink()
    imported = import_model(tmp_path, max_seq_len=8, needs_weights=False)
    assert imported.notes == ("the folder holds no weights, so that nothing was checked against them",)
    assert imported.module.script() == with_weights.module.script()
    assert imported.parameters.shape("lm_head.weight") == (101, 36)
    with pytest.raises(ImportModelError, match=r"lm_head\.weight can't be read: the model was imported without"):
        imported.parameters.load("lm_head.weight")


def test_without_weights_buffers_are_missing_as_well(tmp_path):
    config = ResNetConfig(embedding_size=6, hidden_sizes=[6, 10], depths=[1, 1])
    config.architectures = ["ResNetForImageClassification"]
    config.save_pretrained(tmp_path)
    parameters = import_model(tmp_path, needs_weights=False).parameters
    assert parameters.shape("resnet.embedder.embedder.normalization.running_mean") == (6,)


def test_other_kinds_of_tokenizers_are_converted(tmp_path):
    save(tiny_llama(num_hidden_layers=1), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<|endoftext|>": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    files, notes = read_tokenizer_files(tmp_path)
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode("abb").ids == [2, 1]
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|endoftext|>"
    assert notes == ("tokenizer.json was made of vocab.json, merges.txt",)


def test_a_tokenizer_that_can_not_be_converted_costs_text_only(tmp_path):
    save(tiny_llama(num_hidden_layers=1), tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no sentencepiece")
    files, notes = read_tokenizer_files(tmp_path)
    assert files == {}
    assert notes[0].startswith("no tokenizer: transformers can't convert tokenizer.model")
    assert "token ids, and no text" in notes[0] and "\n" not in notes[0]


def test_tokenizer_files_come_along(tmp_path):
    save(tiny_llama(num_hidden_layers=1), tmp_path)
    assert import_model(tmp_path, max_seq_len=8).tokenizer_files == {}
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    files = import_model(tmp_path, max_seq_len=8).tokenizer_files
    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert json.loads(files["tokenizer_config.json"]) == {"eos_token": "b", "chat_template": "{{ messages }}"}
