"""Models of every GGUF architecture that is read, written as llama.cpp's converter does: they compute what they did."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.gguf import open_gguf
from hwpq_tvm.importers.gguf_architectures import ARCHITECTURES
from hwpq_tvm.importers.gguf_file import GGUFFile

SIZES = {
    "vocab_size": 37,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
YARN = {"rope_type": "yarn", "rope_theta": 900.0, "factor": 2.0, "original_max_position_embeddings": 20}


def rows_of_pairs(heads):
    """What the converter does to queries and keys (`LlamaModel.permute`)."""
    return lambda w, c: w.reshape(heads(c), 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def three_apart(w, c):
    """Queries, keys and values of every head -> of all heads (`BloomModel`, `GPTNeoXModel`)."""
    parts = w.reshape(c.num_attention_heads, 3, -1, *w.shape[1:])
    return np.concatenate([parts[:, i].reshape(-1, *w.shape[1:]) for i in range(3)])


def falcon_apart(w, c):
    """As `FalconModel`: `[groups, queries + key + value, head_dim, hidden]`, taken apart."""
    groups = c.num_kv_heads if c.new_decoder_architecture else 1
    head_dim = c.hidden_size // c.num_attention_heads
    parts = w.reshape(groups, c.num_attention_heads // groups + 2, head_dim, -1)
    return np.concatenate([p.reshape(-1, w.shape[1]) for p in (parts[:, :-2], parts[:, -2], parts[:, -1])])


QUERY, KEY = rows_of_pairs(lambda c: c.num_attention_heads), rows_of_pairs(lambda c: c.num_key_value_heads)
LLAMA = {"q_proj": QUERY, "k_proj": KEY}
NORM = {"norm": lambda w, c: w + 1}
TRANSPOSED = dict.fromkeys(("c_attn.weight", "c_proj.weight", "c_fc.weight"), lambda w, c: w.T)

# Case -> (architecture, overrides of the configuration, what the converter changes, keys that it adds).
CASES = {
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, {"query_key_value": three_apart}, {}),
    "falcon, one head of keys": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": True, "bias": False, "parallel_attn": True},
        {"query_key_value": falcon_apart},
        {"attention.head_count_kv": 1},
    ),
    "falcon, groups": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False},
        {"query_key_value": falcon_apart},
        {"attention.head_count_kv": 2},
    ),
    "gemma": ("gemma", {"head_dim": 16}, NORM, {}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16}, NORM, {}),
    "gemma3": (
        "gemma3",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "num_hidden_layers": 6,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        NORM,
        {"rope.freq_base": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "gpt2": ("gpt2", {"n_layer": 2, "n_head": 4, "n_positions": 40}, TRANSPOSED, {}),
    "gptneox": (
        "gptneox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}},
        {"query_key_value": three_apart},
        {"rope.dimension_count": 6, "use_parallel_residual": True, "rope.freq_base": 700.0},
    ),
    "granite": (
        "granite",
        {"attention_multiplier": 0.5, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0},
        LLAMA,
        {"attention.scale": 0.5, "embedding_scale": 3.0, "residual_scale": 0.7, "logit_scale": 2.0},
    ),
    "llama": ("llama", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}, LLAMA, {}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": YARN},
        LLAMA,
        {
            "rope.freq_base": 900.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 2.0,
            "rope.scaling.original_context_length": 20,
        },
    ),
    "mixtral": ("llama", {"num_local_experts": 3}, LLAMA, {"expert_count": 3, "expert_used_count": 2}),
    "nemotron": (
        "nemotron",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        NORM,
        {"rope.dimension_count": 6},
    ),
    "olmo": ("olmo", {"clip_qkv": 0.9}, LLAMA, {"attention.clamp_kqv": 0.9, "attention.layer_norm_epsilon": 1e-5}),
    "olmo2": ("olmo2", {}, {}, {}),
    "olmoe": (
        "olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2},
        {},
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "phi2": (
        "phi2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {},
        {"rope.dimension_count": 6},
    ),
    "phi3": ("phi3", {"pad_token_id": 0, "sliding_window": 6}, {}, {"attention.sliding_window": 6}),
    "qwen2": ("qwen2", {}, {}, {}),
    "qwen2moe": (
        "qwen2moe",
        {**EXPERTS, "shared_expert_intermediate_size": 28},
        {"shared_expert_gate": lambda w, c: w[0]},
        {
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 20,
            "expert_shared_feed_forward_length": 28,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16}, {}, {}),
    "qwen3moe": (
        "qwen3moe",
        {**EXPERTS, "head_dim": 16, "norm_topk_prob": True},
        {},
        {"expert_count": 5, "expert_used_count": 2, "expert_feed_forward_length": 20},
    ),
    "qwen3moe, weights as they are": (
        "qwen3moe",
        {**EXPERTS, "head_dim": 16, "norm_topk_prob": False},
        {},
        {
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 20,
            "expert_weights_norm": False,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "pad_token_id": 0}, LLAMA, {}),
    "stablelm": (
        "stablelm",
        {
            "use_qkv_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
        {},
        {"rope.dimension_count": 6},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None}, {}, {}),
}


def make_model(case):
    architecture, overrides, _, _ = CASES[case]
    model_type = "mixtral" if case == "mixtral" else ARCHITECTURES[architecture].model_type
    sizes = dict(SIZES)
    if model_type in ("gpt2", "bloom"):
        sizes = {"vocab_size": 37, "hidden_size": 48}
    if model_type in ("gpt_neox", "falcon"):
        del sizes["num_key_value_heads"]
    if model_type == "falcon":
        del sizes["intermediate_size"]
    config = AutoConfig.for_model(model_type, **{**sizes, **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(len(case))
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5 + (parameter.ndim == 1))
    return model


def write(model, path, architecture, changes, keys, extra=None):
    """Write a model as llama.cpp's converter does, in F32; `extra` are tensors that no parameter stands for."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    inner = next(
        (getattr(config, n) for n in ("intermediate_size", "ffn_hidden_size", "n_inner") if getattr(config, n, None)),
        None,
    )
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": 40,
        "embedding_length": config.hidden_size,
        "feed_forward_length": inner or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "rope.freq_base": (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0),
        **keys,
    }
    values.setdefault("attention.head_count_kv", getattr(config, "num_key_value_heads", config.num_attention_heads))
    if getattr(config, "head_dim", None):
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    for names, key in (
        (("rms_norm_eps",), "attention.layer_norm_rms_epsilon"),
        (("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"), "attention.layer_norm_epsilon"),
    ):
        if found := [getattr(config, name) for name in names if getattr(config, name, None) is not None]:
            values[key] = found[0]
    if architecture.startswith("gemma") and architecture != "gemma":
        values["attention.sliding_window"] = 5
    if architecture == "gemma2":
        values |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    for key, value in values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add[type(value)](f"{architecture}.{key}", value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        change = next((change for part, change in changes.items() if part in name), None)
        if change is not None and not (change is NORM["norm"] and value.ndim > 1) and not name.endswith("norm.bias"):
            value = change(value, config)
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(value, 2, axis=1)
            writer.add_tensor(f"blk.{layer}.ffn_gate_exps.weight", np.ascontiguousarray(gate))
            writer.add_tensor(f"blk.{layer}.ffn_up_exps.weight", np.ascontiguousarray(up))
            continue
        if name.endswith("experts.down_proj"):
            writer.add_tensor(f"blk.{layer}.ffn_down_exps.weight", np.ascontiguousarray(value))
            continue
        stem, _, kind = name.rpartition(".")
        found = table.get_name(stem) or table.get_name(stem.removeprefix("transformer."))
        writer.add_tensor(f"{found}.{kind}", np.ascontiguousarray(value))
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model, ids):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def read_back(path):
    """The model of a file, with its weights."""
    _, found, source = open_gguf(path)
    read = AutoModelForCausalLM.from_config(found.config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in read.named_parameters():
            parameter.copy_(torch.from_numpy(source.load(name)))
        buffers = dict(found.named_buffers())
        for name, buffer in read.named_buffers():
            buffer.copy_(buffers[name])
    return read


@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_what_its_model_did(tmp_path, case):
    architecture, _, changes, keys = CASES[case]
    model = make_model(case)
    _, found, source = open_gguf(write(model, tmp_path / "tiny.gguf", architecture, changes, keys))
    parameters = dict(found.named_parameters())
    assert source.names() == parameters.keys() and type(found) is type(model)
    for name, parameter in parameters.items():
        value = source.load(name)
        assert value.shape == source.shape(name) == tuple(parameter.shape), name
        assert value.flags.c_contiguous
        np.testing.assert_allclose(value, model.get_parameter(name).detach().numpy(), atol=1e-6, err_msg=name)
        if value.ndim > 1:
            index = min(2, len(value) - 1)
            np.testing.assert_array_equal(source.load_index(name, index), value[index])
    ids = np.random.default_rng(5).integers(3, 37, 13).tolist()
    expected = logits(model, ids)
    assert expected.std() > 0.1
    found = logits(read_back(tmp_path / "tiny.gguf"), ids)
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1, np.abs(expected).max()))


def test_of_a_matrix_one_row_is_dequantized(tmp_path, monkeypatch):
    architecture, _, changes, keys = CASES["mixtral"]
    _, model, source = open_gguf(write(make_model("mixtral"), tmp_path / "tiny.gguf", architecture, changes, keys))
    read = []
    stock = GGUFFile.load
    monkeypatch.setattr(
        GGUFFile, "load", lambda self, name, index=None: read.append((name, index)) or stock(self, name, index)
    )
    alone = {}
    for name, parameter in model.named_parameters():
        read.clear()
        source.load_index(name, 1)
        alone[name.split(".", 3)[-1]] = read == [(each, 1) for each, _ in read]
        assert source.reads_parts(name) is alone[name.split(".", 3)[-1]], parameter.shape
    assert alone["self_attn.v_proj.weight"] and alone["mlp.experts.gate_up_proj"]
    # The converter moved rows of these; a vector is as quick to read as a number.
    assert not alone["self_attn.q_proj.weight"] and not alone["input_layernorm.weight"]


@pytest.mark.parametrize("case", ["olmo", "falcon, groups"])
def test_an_epsilon_that_the_model_does_not_have_is_refused(tmp_path, case):
    architecture, _, changes, keys = CASES[case]
    keys = {**keys, f"attention.layer_norm{'_rms' * (architecture != 'olmo')}_epsilon": 1e-6}
    path = write(make_model(case), tmp_path / "tiny.gguf", architecture, changes, keys)
    with pytest.raises(ImportModelError, match=r"epsilon = .*e-0[67].*give the folder of the original model"):
        open_gguf(path)


@pytest.mark.parametrize("case", ["llama3", "longrope"])
def test_frequencies_of_their_own(tmp_path, case):
    factors = np.linspace(1, 6, 6)
    if case == "llama3":
        overrides = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
        config = AutoConfig.for_model("llama", **SIZES, rope_parameters=overrides)
    else:
        overrides = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": factors.tolist(),
            "short_factor": (factors / 2 + 0.5).tolist(),
            "original_max_position_embeddings": 20,
        }
        sizes = {**SIZES, "pad_token_id": 0, "original_max_position_embeddings": 20}
        config = AutoConfig.for_model("phi3", **sizes, rope_parameters=overrides)
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5 + (parameter.ndim == 1))
    if case == "llama3":
        plain = 10000.0 ** -(np.arange(6) / 6)
        extra = {"rope_freqs.weight": plain / model.model.rotary_emb.inv_freq.numpy()}
        assert extra["rope_freqs.weight"].max() > 4
        path = write(model, tmp_path / "tiny.gguf", "llama", LLAMA, {}, extra)
    else:
        extra = {"rope_factors_long.weight": factors, "rope_factors_short.weight": factors / 2 + 0.5}
        keys = {
            "rope.scaling.original_context_length": 20,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(2) / np.log(20))),
        }
        path = write(model, tmp_path / "tiny.gguf", "phi3", {}, keys, extra)
    for length in (13, 31):  # below and above the original length
        ids = np.random.default_rng(5).integers(3, 37, length).tolist()
        np.testing.assert_allclose(logits(read_back(path), ids), logits(model, ids), atol=1e-3)


def test_every_type_of_numbers_that_the_package_can_read(tmp_path):
    random = np.random.default_rng(2)
    value = random.standard_normal((3, 512)).astype(np.float32)
    stored = {}
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if kind not in gguf.quants._type_traits or kind is gguf.GGMLQuantizationType.BF16:
            continue
        try:
            stored[kind] = gguf.quants.quantize(value, kind)
        except NotImplementedError:
            # No quantizer: blocks of bytes that are not infinite anywhere.
            stored[kind] = random.integers(0, 60, (3, 512 // block * nbytes)).astype(np.uint8)
    assert len(stored) > 20
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind, data in stored.items():
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    for kind, data in stored.items():
        expected = gguf.quants.dequantize(data, kind)
        np.testing.assert_array_equal(file.load(kind.name), expected)
        np.testing.assert_array_equal(file.load(kind.name, 1), expected[1])
        assert file.tensors[kind.name].shape == (3, 512)


# Architectures whose files transformers reads as well; its way of reading is another one.
READ_BY_TRANSFORMERS = ("bloom", "gemma2", "gpt2", "llama", "nemotron", "phi3", "qwen2moe", "qwen3moe", "starcoder2")


@pytest.mark.parametrize("case", READ_BY_TRANSFORMERS)
def test_weights_are_those_that_transformers_reads(tmp_path, case):
    architecture, _, changes, keys = CASES[case]
    path = write(make_model(case), tmp_path / "tiny.gguf", architecture, changes, keys)
    _, found, source = open_gguf(path)
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=found)["tensors"]
    assert len(expected) >= len(source.names()) - 1
    for name, tensor in expected.items():
        if name in source.names():
            np.testing.assert_array_equal(source.load(name), tensor.float().numpy(), err_msg=name)
