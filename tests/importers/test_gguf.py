"""GGUF files: written by the gguf package the way llama.cpp's converter does, read by ours."""

import json
import re

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.importers.gguf_file import GGUFFile
from tests.tiny_hf import tiny_llama, tiny_qwen2

TOKENS = ["<s>", "</s>", "a", "b", "Ġ", "ab", "Ġab"]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "num_attention_heads": 4,
}
SIZES |= {"num_key_value_heads": 2}


def interleave(weight, heads):
    """Order of rows of queries and keys in llama.cpp (`LlamaModel.permute` of its converter)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(model, path, **changes):
    """Write a model as a GGUF file with weights in Q8_0; `changes` are keys to add or replace."""
    config = model.config
    architecture = config.model_type
    values = {
        "general.architecture": architecture,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b", "Ġ ab"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
        **changes,
    }
    writer = gguf.GGUFWriter(path, architecture)
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    add[bool] = writer.add_bool
    for key, value in values.items():
        if key != "general.architecture":
            add[type(value)](key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, _, kind = name.rpartition(".")
        value = parameter.detach().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            value = interleave(value, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        quantize = value.ndim == 2 and "v_proj" not in name
        dtype = gguf.GGMLQuantizationType.Q8_0 if quantize else None
        data = (
            gguf.quants.quantize(value, dtype) if quantize else value.astype(np.float16) if value.ndim == 2 else value
        )
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("make, tied", [(tiny_llama, True), (tiny_qwen2, False)])
def test_weights_are_those_that_transformers_reads(tmp_path, make, tied):
    model = make(tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, **SIZES)
    path = write(model, tmp_path / "tiny.gguf")
    imported = import_model(path, max_seq_len=16)

    skeleton = AutoModelForCausalLM.from_config(model.config)
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=skeleton)["tensors"]
    names = [variable.name for variable in imported.module["decode"].params[3:]]
    assert {*names} == {*dict(model.named_parameters()), "model.rotary_emb.inv_freq"}
    for name in names:
        loaded = imported.parameters.load(name)
        assert loaded.flags.c_contiguous and loaded.dtype == np.float32
        if name == "model.rotary_emb.inv_freq":
            np.testing.assert_array_equal(loaded, model.model.rotary_emb.inv_freq.numpy())
            continue
        np.testing.assert_array_equal(loaded, expected[name].float().numpy())
        original = model.get_parameter(name).detach().numpy()
        assert np.abs(loaded - original).max() < 0.01 * np.abs(original).max()

    metadata = imported.metadata
    assert (metadata.source, metadata.source_format) == (str(path), "gguf Q8_0")
    assert metadata.source_bytes == path.stat().st_size
    assert metadata.architecture == type(model).__name__
    assert (metadata.causal_lm.eos_token_ids, metadata.causal_lm.bos_token_id, metadata.causal_lm.vocab_size) == (
        (1,),
        0,
        len(TOKENS),
    )


def test_tokenizer_is_made_from_the_metadata(tmp_path):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **{"tokenizer.ggml.add_bos_token": True})
    files = import_model(path, max_seq_len=16).tokenizer_files
    config = json.loads(files["tokenizer_config.json"])
    assert config == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "chat_template": "{{ messages }}",
    }
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("ab ab</s>").ids == [0, 5, 6, 1]
    assert tokenizer.encode("ab", add_special_tokens=False).ids == [5]


@pytest.mark.parametrize(
    ("kind", "starts"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("default", False)]
)
def test_without_a_flag_the_kind_of_tokenizer_says_whether_texts_start_with_bos(tmp_path, kind, starts):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **{"tokenizer.ggml.pre": kind})
    files = import_model(path, max_seq_len=16).tokenizer_files
    assert json.loads(files["tokenizer_config.json"])["add_bos_token"] is starts
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode("ab").ids == [0, 5][not starts :]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"llama.rope.scaling.type": "dynamic"}, r"rope\.scaling\.type = 'dynamic'"),
        ({"llama.attention.value_length": 8}, "values of 8 and keys of 16 elements"),
        ({"llama.embedding_scale": 2.0}, r"llama\.embedding_scale = 2\.0"),
        ({"llama.attention.causal": False}, r"llama\.attention\.causal = False"),
        ({"llama.attention.layer_norm_epsilon": 1e-5}, r"llama\.attention\.layer_norm_epsilon = .*e-0"),
        ({"llama.feed_forward_length": [96, 64]}, r"llama\.feed_forward_length differs from layer to layer"),
    ],
)
def test_what_the_configuration_would_not_say_is_refused(tmp_path, changes, message):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ImportModelError, match=f"{message}.*give the folder of the original model"):
        import_model(path, max_seq_len=16)


def test_what_says_nothing_new_is_passed_over(tmp_path):
    changes = {"llama.attention.causal": True, "llama.attention.max_alibi_bias": 0.0, "llama.unheard_of": 0}
    changes |= {"llama.expert_gating_func": 0}
    write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **changes)
    assert import_model(tmp_path / "tiny.gguf", max_seq_len=16).entries == ("decode", "prefill")


def test_damaged_files(tmp_path):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf")
    content = path.read_bytes()
    for length, message in [
        (4, "header of .* can't be read"),
        (300, "header of .* can't be read"),
        (len(content) - 8000, "it was not copied whole; fetch it again"),
    ]:
        path.write_bytes(content[:length])
        with pytest.raises(ImportModelError, match=message):
            import_model(path, max_seq_len=16)


def test_architectures_of_another_kind(tmp_path):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba", 1))
    with pytest.raises(ImportModelError, match=r"architecture 'mamba': expected bloom, falcon, .*qwen3moe"):
        import_model(path, max_seq_len=16)


def test_parts_of_a_model(tmp_path):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **{"split.count": 3})
    with pytest.raises(ImportModelError, match="is one of 3 parts of a model: put them together"):
        import_model(path, max_seq_len=16)


def test_a_tokenizer_that_can_not_be_made_costs_text_only(tmp_path):
    path = write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **{"tokenizer.ggml.model": "rwkv"})
    imported = import_model(path, max_seq_len=16)
    assert imported.tokenizer_files == {}
    assert "can't make one of the kind 'rwkv'" in imported.notes[0] and "takes token ids" in imported.notes[0]


def test_values_of_all_kinds(tmp_path):
    changes = {
        "a.list": [1, 2, 3],
        "a.words": ["x", "yé"],
        "a.flag": False,
        "a.number": 0.5,
        "a.one": [7],
    }
    metadata = GGUFFile(write(tiny_llama(**SIZES), tmp_path / "tiny.gguf", **changes)).metadata
    assert {key: value for key, value in metadata.items() if key.startswith("a.")} == changes
    assert re.fullmatch("llama", metadata["general.architecture"])
    assert torch.tensor(metadata["tokenizer.ggml.token_type"]).tolist() == [3, 3, 1, 1, 1, 1, 1]
