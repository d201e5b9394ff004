"""Encoders and encoder-decoders of transformers: entries, masks, limits, refusals; `tests/e2e` has the numbers."""

import numpy as np
import pytest
import torch
import tvm
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.importers.model_class import model_class, model_kind
from hwpq_tvm.schedules.kernel_attr import description

from .stock_build import runner

SIZES = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
}
# Of each part of an encoder-decoder.
LAYERS = {"layers": 1, "attention_heads": 3, "ffn_dim": 44}


def inputs_of(function):
    """Names and shapes of an entry's inputs."""
    parameters = function.params[: int(function.attrs["num_input"])]
    return {
        str(each.name): tuple(getattr(dim, "name", None) or int(dim) for dim in each.ty.shape.values)
        for each in parameters
    }


def kernels_of(module):
    """Descriptions of the kernels that a module calls."""
    functions = (function for _, function in module.functions_items() if isinstance(function, tvm.tirx.PrimFunc))
    return [found for found in map(description, functions) if found is not None]


def test_a_text_encoder_has_symbolic_batch_and_length_and_masks_of_no_queries():
    imported = import_model(BertModel(BertConfig(**SIZES)))
    assert imported.entries == ("main",)
    main = imported.module["main"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert inputs_of(main) == dict.fromkeys(names, ("batch", "seq_len"))
    assert dict(main.attrs["tir_var_upper_bound"]) == {"seq_len": 64}
    assert list(main.attrs["hwpq.outputs"]) == ["last_hidden_state", "pooler_output"]
    (attention,) = kernels_of(imported.module)
    assert (attention["op"], attention["mask"], attention["mask_dims"]) == ("dense_attention", "bool", [1, 0, 0, 1])
    # Queries, keys and values are read as the linears wrote them.
    assert (attention["heads_first"], attention["causal"]) == ([0, 0, 0], False)


def test_a_decoder_without_head_sees_no_later_tokens():
    imported = import_model(LlamaModel(LlamaConfig(**SIZES)))
    assert inputs_of(imported.module["main"]) == dict.fromkeys(("input_ids", "attention_mask"), ("batch", "seq_len"))
    (attention,) = kernels_of(imported.module)
    assert attention["mask_dims"] == [1, 0, 1, 1]


def test_an_image_classifier_takes_images_of_one_size():
    sizes = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = ViTConfig(**sizes, num_attention_heads=3, image_size=24, patch_size=8, num_channels=1)
    imported = import_model(ViTForImageClassification(config))
    assert inputs_of(imported.module["main"]) == {"pixel_values": ("batch", 1, 24, 24)}
    assert imported.notes == ("images are of 24 x 24 pixels",)


def test_encoder_and_decoder_take_the_same_weights():
    sizes = {f"{part}_{name}": number for part in ("encoder", "decoder") for name, number in LAYERS.items()}
    imported = import_model(
        BartForConditionalGeneration(BartConfig(vocab_size=101, d_model=36, max_position_embeddings=64, **sizes))
    )
    assert imported.entries == ("decoder", "encoder")
    decoder, encoder = (imported.module[entry] for entry in imported.entries)
    assert inputs_of(encoder) == dict.fromkeys(("input_ids", "attention_mask"), ("batch", "seq_len"))
    assert inputs_of(decoder) == {
        "decoder_input_ids": ("batch", "target_len"),
        "encoder_hidden_states": ("batch", "seq_len", 36),
        "attention_mask": ("batch", "seq_len"),
    }
    weights = [[str(each.name) for each in f.params[int(f.attrs["num_input"]) :]] for f in (decoder, encoder)]
    assert weights[0] == weights[1]
    assert list(decoder.attrs["hwpq.outputs"]) == ["logits"]


def test_what_can_not_be_expressed_is_refused():
    with pytest.raises(ImportModelError, match=r"Wav2Vec2Model takes input_values.*example_inputs"):
        import_model(Wav2Vec2Model(Wav2Vec2Config(**SIZES, num_conv_pos_embedding_groups=4)))
    both_ways = Gemma3TextConfig(**SIZES, head_dim=12, num_key_value_heads=1, use_bidirectional_attention=True)
    with pytest.raises(ImportModelError, match=r"Gemma3TextModel.*masks of its own"):
        import_model(Gemma3TextModel(both_ways))


def test_the_class_is_that_of_the_configuration():
    assert model_class(BertConfig(architectures=["BertForMaskedLM"])) is BertForMaskedLM
    assert model_class(ViTConfig()).__name__ == "ViTModel"
    assert model_class(LlamaConfig(architectures=["Unheard"])).__name__ == "LlamaForCausalLM"
    assert model_kind(BertForMaskedLM(BertConfig(**SIZES))) == "encoder"


class Attention(torch.nn.Module):
    """Every way to ask torch for attention."""

    def forward(self, query, key, value, seen, added):
        groups = key[:, :1], value[:, :1]
        return (
            scaled_dot_product_attention(query, key, value),
            scaled_dot_product_attention(query, key, value, attn_mask=seen),
            scaled_dot_product_attention(query, key, value, attn_mask=added, scale=0.3).transpose(1, 2),
            scaled_dot_product_attention(query, key, value, is_causal=True),
            scaled_dot_product_attention(query, *groups, attn_mask=seen[:, 0, 0], enable_gqa=True),
            scaled_dot_product_attention(query[:, 0], key[:, 0], value[:, 0], attn_mask=added[0, 0]),
        )


def test_attention_of_any_module_is_one_kernel():
    generator = torch.Generator().manual_seed(8)
    query, key, value = (
        torch.randn(shape, generator=generator) for shape in ((2, 3, 9, 10), (2, 3, 21, 10), (2, 3, 21, 6))
    )
    seen = torch.rand((1, 1, 1, 21), generator=generator) > 0.4
    added = torch.randn((2, 3, 9, 21), generator=generator)
    inputs = (query, key, value, seen, added)
    imported = import_model(Attention(), example_inputs=inputs)
    assert {kernel["op"] for kernel in kernels_of(imported.module)} == {"dense_attention"}
    found = runner(imported)(*(each.numpy() for each in inputs))
    with torch.no_grad():
        expected = Attention()(*inputs)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
