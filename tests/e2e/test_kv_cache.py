"""The int8 KV cache through the whole of `build`: what it changes, what it saves, and that it is saved and loaded."""

import numpy as np
import pytest

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.runtime.session import Session
from tests.tiny_hf import tiny_llama

FLOAT32 = LayerScheme(sparsity=None, dtype="float32")
MAX_SEQ_LEN = 48


@pytest.fixture(scope="module")
def models():
    """The same model with either cache; its weights are not quantized, so that the caches are all that differs."""
    hf = tiny_llama(seed=5, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    return {
        dtype: hwpq_tvm.build(
            hf,
            "cpu",
            config=HWPQConfig(default=FLOAT32, lm_head=FLOAT32, kv_cache_dtype=dtype),
            calibration=None,
            max_seq_len=MAX_SEQ_LEN,
            progress=False,
        )
        for dtype in ("float32", "int8")
    }


def test_int8_costs_little_and_saves_what_it_says(models):
    ids = np.random.default_rng(6).integers(0, 101, 40)
    expected, found = models["float32"](ids), models["int8"](ids)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    # Quantizing a row to 255 levels is noise of 0.4 to 0.8 % of it, in each of two layers.
    assert 1e-4 < error < 0.02
    specs = {dtype: model.generation for dtype, model in models.items()}
    assert specs["int8"].kv_cache_dtype == "int8"
    assert specs["float32"].kv_cache_bytes == 2 * 2 * 2 * MAX_SEQ_LEN * 32 * 4
    assert specs["int8"].kv_cache_bytes == 2 * 2 * 2 * MAX_SEQ_LEN * (32 + 4)


def test_decode_reads_what_prefill_wrote(models):
    model = models["int8"]
    ids = np.random.default_rng(7).integers(0, 101, 40)
    session = Session(model)
    stepwise = [session.prefill(ids[:17])[0], *(session.decode(int(token)) for token in ids[17:])]
    # Float32 rounding moves a number of a row to the next of its 255 levels now and then.
    whole = model(ids)
    assert np.linalg.norm(np.stack(stepwise) - whole[16:]) < 0.005 * np.linalg.norm(whole[16:])


def test_a_saved_model_has_the_same_cache(models, tmp_path):
    models["int8"].save(tmp_path / "model")
    loaded = hwpq_tvm.load(tmp_path / "model")
    assert loaded.generation == models["int8"].generation
    prompt = [3, 1, 4, 1, 5]
    expected = list(models["int8"].generate(prompt, max_new_tokens=20))
    assert list(loaded.generate(prompt, max_new_tokens=20)) == expected
    assert len(set(expected)) > 1
