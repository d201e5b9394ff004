"""Imported tiny models compute what transformers computes, whole or step by step."""

import numpy as np
import pytest
import torch
import tvm
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from tests.importers.stock_build import Runner
from tests.tiny_hf import save, tiny, tiny_gemma2, tiny_llama, tiny_qwen2

LENGTH = 24
MODELS = {
    "llama, tied": lambda: tiny_llama(tie_word_embeddings=True),
    "llama, biases, head_dim of its own, scaled rotary": lambda: tiny_llama(
        attention_bias=True,
        mlp_bias=True,
        head_dim=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "qwen2, window in the last layer": lambda: tiny_qwen2(
        use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "gemma2, soft-cap": lambda: tiny_gemma2(sliding_window=3, attn_logit_softcapping=2.0),
}


@pytest.fixture(scope="module", params=MODELS)
def model_and_import(request):
    """A model of transformers and what it is imported as."""
    model = MODELS[request.param]()
    return model, import_model(model, max_seq_len=LENGTH)


def reference(model, ids):
    """Logits of transformers' own attention, `[len(ids), vocab]`."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_a_folder_in_bfloat16_computes_what_transformers_computes_in_float32(tmp_path):
    save(tiny_llama(seed=3, num_key_value_heads=3, num_hidden_layers=1), tmp_path, dtype=torch.bfloat16)
    ids = [5, 99, 0, 42, 17]
    expected = reference(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), ids)
    runner = Runner(import_model(str(tmp_path), max_seq_len=LENGTH))
    np.testing.assert_allclose(runner.prefill(ids, 0, [0, 1, 2, 3, 4]), expected, atol=1e-4)


def test_prefill_and_decode_give_the_logits_of_transformers(model_and_import):
    model, imported = model_and_import
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 20).tolist()
    expected = reference(model, ids)
    runner = Runner(imported)
    assert expected.std() > 0.3

    at = [6, 0, 3]
    np.testing.assert_allclose(runner.prefill(ids[:7], 0, at), expected[at], atol=1e-4)
    for position in (7, 8, 9):
        np.testing.assert_allclose(runner.decode(ids[position], position), expected[position], atol=1e-4)
    np.testing.assert_allclose(runner.prefill(ids[10:], 10, [9, 4]), expected[[19, 14]], atol=1e-4)
    # Back to position 3: what the cache holds beyond is not seen.
    np.testing.assert_allclose(runner.decode(ids[3], 3), expected[3], atol=1e-4)


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_gemma2])
def test_an_int8_cache_changes_the_logits_by_what_quantizing_costs(tiny):
    model = tiny(num_hidden_layers=2)
    imported = import_model(model, max_seq_len=LENGTH, kv_cache_dtype="int8")
    heads, head_dim = model.config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
    assert imported.metadata.causal_lm.kv_cache_shape == (2, 2, 1, heads, LENGTH, head_dim + 4)
    assert imported.metadata.causal_lm.kv_cache_dtype == "int8"
    ids = np.random.default_rng(4).integers(0, model.config.vocab_size, 20).tolist()
    expected = reference(model, ids)
    runner = Runner(imported)
    found = [*runner.prefill(ids[:12], 0, range(12)), *(runner.decode(ids[i], i) for i in range(12, 20))]
    # Rounding to 255 levels is noise of about 0.4 % of a row; it goes through two layers.
    error = np.linalg.norm(np.stack(found) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error[0] < 0.02 and 1e-4 < error.mean() < 0.02
    # The same tokens at once go through the other kernels to the same numbers.
    np.testing.assert_allclose(runner.prefill(ids, 0, range(20)), found, atol=1e-3)


def test_an_unknown_cache_dtype_is_refused():
    with pytest.raises(ImportModelError, match="kv_cache_dtype is 'int4': expected one of float32, int8"):
        import_model(tiny_llama(), kv_cache_dtype="int4")


def test_entries_follow_the_calling_convention(model_and_import):
    model, imported = model_and_import
    assert imported.entries == ("decode", "prefill")
    cache = (2, 2, 1, model.config.num_key_value_heads, LENGTH, model.model.layers[0].self_attn.head_dim)
    assert imported.metadata.causal_lm.kv_cache_shape == cache
    assert imported.metadata.causal_lm.kv_cache_dtype == "float32"
    weights = {}
    for entry in imported.entries:
        function = imported.module[entry]
        assert function.is_pure
        assert all(isinstance(block, relax.DataflowBlock) for block in function.body.blocks)
        count = function.attrs["num_input"]
        inputs = {variable.name: variable.ty for variable in function.params[:count]}
        assert list(inputs) == [
            name
            for name in ("input_ids", "logits_at", "past_lengths", "kv_cache")
            if entry == "prefill" or name != "logits_at"
        ]
        assert (inputs["input_ids"].dtype, inputs["past_lengths"].dtype) == ("int64", "int32")
        assert [int(dim) for dim in inputs["kv_cache"].shape.values] == list(cache)
        length = inputs["input_ids"].shape.values[1]
        assert length == 1 if entry == "decode" else length.name == "seq_len"
        logits = function.ret_ty.fields[0]
        positions = logits.shape.values[1]
        assert logits.dtype == "float32" and logits.shape.values[2] == model.config.vocab_size
        assert positions == 1 if entry == "decode" else positions.name == "num_logits"
        weights[entry] = [(v.name, tuple(int(dim) for dim in v.ty.shape.values)) for v in function.params[count:]]
    assert weights["prefill"] == weights["decode"]
    named = dict(model.named_parameters())
    buffers = {name: value for name, value in model.named_buffers() if not name.endswith("original_inv_freq")}
    assert {name for name, _ in weights["prefill"]} == named.keys() | buffers.keys()
    for name, shape in weights["prefill"]:
        assert imported.parameters.shape(name) == shape
        loaded = imported.parameters.load(name)
        assert loaded.shape == shape and loaded.dtype == np.float32 and loaded.flags.c_contiguous
        expected = {**named, **buffers}[name].detach()
        np.testing.assert_array_equal(loaded, expected.numpy())


def test_one_kernel_serves_all_layers_that_are_alike(model_and_import):
    model, imported = model_and_import
    windows = {
        layer.self_attn.sliding_window for layer in model.model.layers if hasattr(layer.self_attn, "sliding_window")
    }
    functions = imported.module.functions.items()
    kernels = {variable.name_hint: f for variable, f in functions if isinstance(f, tvm.tirx.PrimFunc)}
    # For each entry: one update of the cache, and an attention for each kind of layer.
    assert len(kernels) == 2 * (1 + max(1, len(windows)))
    assert all(function.attrs["global_symbol"] == name for name, function in kernels.items())


def test_linears_stay_whole_and_nothing_is_a_constant():
    model = tiny_qwen2(tie_word_embeddings=True, num_hidden_layers=1)
    imported = import_model(model, max_seq_len=LENGTH)
    for function in (imported.module[entry] for entry in ("prefill", "decode")):
        values = [binding.value for block in function.body.blocks for binding in block.bindings]
        called = [value.op.name for value in values if isinstance(value, relax.Call) and hasattr(value.op, "name")]
        assert called.count("relax.matmul") == called.count("relax.permute_dims") - 3 == 7 + 1
        assert called.count("relax.astype") == 3  # past_lengths, token ids, positions
        assert "relax.power" not in called
        constants = []
        relax.analysis.post_order_visit(
            function, lambda expr, found=constants: found.append(expr) if isinstance(expr, tvm.ir.Constant) else None
        )
        tensors = [constant.ty for constant in constants if isinstance(constant.ty, relax.TensorType)]
        assert tensors and all(not tensor.shape.values for tensor in tensors)


def test_a_live_model_stays_as_it_is():
    model = tiny_llama(num_hidden_layers=1).to(torch.bfloat16)
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    imported = import_model(model, max_seq_len=LENGTH)
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == before
    assert model.config._attn_implementation == attention
    assert model.model.layers[0].self_attn.config is model.config
    assert imported.metadata.source_format == "torch"
    assert imported.metadata.source_bytes == 2 * sum(parameter.numel() for parameter in model.parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(imported.parameters.load(name), model.get_parameter(name).detach().float().numpy())


class _OddAttention(LlamaAttention):
    """Attention whose values have rows of their own size, and which has more heads of keys than other layers."""

    def __init__(self, config, layer_idx, value_dim):
        super().__init__(config, layer_idx)
        heads = config.num_attention_heads
        self.num_key_value_groups = 1
        self.k_proj = torch.nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.v_proj = torch.nn.Linear(config.hidden_size, heads * value_dim, bias=False)
        self.o_proj = torch.nn.Linear(heads * value_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        batch, length, _ = hidden_states.shape
        query, key, value = (
            linear(hidden_states).view(batch, length, self.config.num_attention_heads, -1).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, weights = attend(self, query, key, value, attention_mask, scaling=0.2, **kwargs)
        return self.o_proj(out.reshape(batch, length, -1)), weights


def llama_of_unlike_layers():
    """The second layer has 3 heads of keys and values of 17 numbers, the first one head of 12."""
    model = tiny_llama(num_key_value_heads=1)
    torch.manual_seed(7)
    model.model.layers[1].self_attn = _OddAttention(model.config, 1, value_dim=17)
    return model.eval()


# Attention of their own, a bias of positions, norms without weights, tables of positions.
UNUSUAL = {
    "falcon with ALiBi": lambda: tiny("falcon"),
    "falcon with rotary positions": lambda: tiny("falcon", alibi=False, multi_query=True, parallel_attn=True),
    "mpt": lambda: tiny("mpt"),
    "gpt_neo": lambda: tiny("gpt_neo"),
    "gptj": lambda: tiny("gptj"),
    "olmo": lambda: tiny("olmo"),
    "unlike layers": llama_of_unlike_layers,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_rows_of_a_batch_are_at_places_of_their_own(name):
    model = UNUSUAL[name]()
    # Falcon's plainest attention adds the bias of positions twice.
    model.set_attn_implementation("sdpa" if name.startswith("falcon") else "eager")
    ids = np.random.default_rng(6).integers(3, model.config.vocab_size, (2, 20))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    assert expected.std() > 0.3
    runner = Runner(import_model(model, max_seq_len=LENGTH, max_batch=2))

    np.testing.assert_allclose(runner.rows("prefill", ids[:, :11], [0, 0], range(11)), expected[:, :11], atol=1e-4)
    # The second row goes back to its position 6.
    pasts = np.array([11, 6])
    at = np.stack([range(past, past + 3) for past in pasts])
    pick = np.arange(2)[:, None]
    np.testing.assert_allclose(runner.rows("prefill", ids[pick, at], pasts, range(3)), expected[pick, at], atol=1e-4)
    for past in (pasts + 3, pasts + 4):
        found = runner.rows("decode", ids[pick, past[:, None]], past)
        np.testing.assert_allclose(found, expected[pick, past[:, None]], atol=1e-4)


def test_the_cache_has_room_for_the_largest_layer():
    imported = import_model(llama_of_unlike_layers(), max_seq_len=LENGTH, kv_cache_dtype="int8")
    assert imported.metadata.causal_lm.kv_cache_shape == (2, 2, 1, 3, LENGTH, 17 + 4)


@pytest.mark.parametrize(("max_seq_len", "long"), [(16, False), (24, True)])
def test_longrope_has_one_set_of_factors_by_the_longest_text(max_seq_len, long):
    model = tiny("phi3")
    imported = import_model(model, max_seq_len=max_seq_len)
    factors = model.config.rope_parameters["long_factor" if long else "short_factor"]
    expected = 1 / (np.array(factors) * 10000.0 ** (np.arange(0, 12, 2) / 12))
    np.testing.assert_allclose(imported.parameters.load("model.rotary_emb.inv_freq"), expected, rtol=1e-6)
    assert bool(imported.notes) == long
    assert not long or "long factors of longrope" in imported.notes[0]


def test_dynamic_rotary_positions_are_the_plain_ones_as_far_as_the_model_goes():
    plain = tiny_llama()
    scaled = tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    # A text that was longer changed the live model's frequencies.
    with torch.no_grad():
        scaled(torch.zeros(1, 80, dtype=torch.int64))
    first, second = (import_model(model, max_seq_len=LENGTH) for model in (plain, scaled))
    name = "model.rotary_emb.inv_freq"
    np.testing.assert_array_equal(first.parameters.load(name), second.parameters.load(name))
