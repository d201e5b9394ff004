"""Checkpoints under old names, and those whose weights are stored in other pieces than the model has."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.converted_checkpoint import ConvertedCheckpoint
from hwpq_tvm.importers.sources import SafetensorsFiles

SIZES = {
    "vocab_size": 31,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
GATE_UP, DOWN = (f"model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))


class Recorder(SafetensorsFiles):
    """Files that tell what was read of them."""

    def __init__(self, folder):
        super().__init__(folder)
        self.was_read = []

    def read(self, name):
        self.was_read.append(name)
        return super().read(name)

    def read_index(self, name, index):
        self.was_read.append((name, index))
        return super().read_index(name, index)


def randomized(model):
    """Give every floating-point tensor, statistics of normalisations included, values of its own."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def stored(model, folder, rename=lambda name: name):
    """Save a model, with other names, and open it."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)
    return Recorder(folder)


def assert_same(checkpoint: ConvertedCheckpoint, model: PreTrainedModel):
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    assert checkpoint.names() == expected.keys()
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(checkpoint.load(name), tensor.numpy())
        assert checkpoint.load(name).flags.c_contiguous


def mixtral():
    return randomized(MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3)))


def qwen2_moe():
    sizes = {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 16, "num_experts": 5}
    return randomized(Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes)))


@pytest.mark.parametrize("make", [mixtral, qwen2_moe])
def test_experts_that_are_stored_one_by_one_are_read_one_by_one(tmp_path, make):
    model = make()
    files = stored(model, tmp_path)
    count = model.get_parameter(DOWN).shape[0]
    assert sum("experts.2." in name for name in files.names()) == 3
    checkpoint = ConvertedCheckpoint(files, model, source="here")
    assert files.was_read == []
    assert_same(checkpoint, model)
    for name in (GATE_UP, DOWN):
        files.was_read.clear()
        for index in (count - 1, 0):
            one = checkpoint.load_index(name, index)
            np.testing.assert_array_equal(one, model.get_parameter(name)[index].detach().numpy())
            assert all(f"experts.{index}." in read for read in files.was_read[-(2 if name == GATE_UP else 1) :])
        assert len(files.was_read) == (4 if name == GATE_UP else 2)


def test_a_slice_of_a_plain_tensor_is_read_alone(tmp_path):
    model = mixtral()
    files = stored(model, tmp_path)
    checkpoint = ConvertedCheckpoint(files, model, source="here")
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(checkpoint.load_index(name, 3), model.get_parameter(name)[3].detach().numpy())
    assert files.was_read == [(name, 3)]


def test_experts_of_unequal_sizes_are_refused(tmp_path):
    files = stored(mixtral(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    odd = next(name for name in tensors if "experts.1.w1" in name)
    tensors[odd] = tensors[odd][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    files = Recorder(tmp_path)
    with pytest.raises(ImportModelError, match=f"conversion for MixtralForCausalLM does not fit: {GATE_UP} from") as e:
        ConvertedCheckpoint(files, mixtral(), source="here")
    assert "\n" not in str(e.value)


def test_names_of_a_model_without_its_head_and_old_buffers(tmp_path):
    model = randomized(GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=20, n_positions=9)))
    files = stored(model, tmp_path, lambda name: name.removeprefix("transformer."))
    tensors = load_file(tmp_path / "model.safetensors")
    assert "h.0.attn.c_attn.weight" in tensors
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 9, 9)}, tmp_path / "model.safetensors")
    assert_same(ConvertedCheckpoint(Recorder(tmp_path), model, source="here"), model)


def test_names_of_normalisations_of_old(tmp_path):
    model = randomized(
        BertModel(
            BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6, vocab_size=9)
        )
    )

    def old(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    files = stored(model, tmp_path, old)
    assert any(name.endswith("gamma") for name in files.names())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "bert.embeddings.position_ids": torch.arange(9)[None]}, tmp_path / "model.safetensors")
    assert_same(ConvertedCheckpoint(Recorder(tmp_path), model, source="here"), model)


def test_statistics_of_normalisations_come_along(tmp_path):
    sizes = {"embedding_size": 6, "hidden_sizes": [6], "depths": [1], "num_channels": 3}
    model = randomized(ResNetForImageClassification(ResNetConfig(**sizes)))
    files = stored(model, tmp_path)
    checkpoint = ConvertedCheckpoint(files, model, source="here")
    assert_same(checkpoint, model)
    counter = next(name for name in checkpoint.names() if name.endswith("num_batches_tracked"))
    assert checkpoint.load(counter).dtype == np.int64


def test_what_the_model_has_no_place_for_keeps_its_name(tmp_path):
    model = mixtral()
    files = stored(model, tmp_path)
    save_file(
        {**load_file(tmp_path / "model.safetensors"), "extra.thing": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    assert "extra.thing" in ConvertedCheckpoint(Recorder(tmp_path), model, source="here").names()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mixtral"
    assert "extra.thing" not in files.names()
