"""Tiny models built for GPUs, run on the host: their logits are those of the same weights on a CPU."""

import numpy as np

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.runtime.batch_session import BatchSession
from tests.tiny_hf import tiny_qwen2

from . import gpu_on_host


def scheme(sparsity, dtype, group_size=None):
    return LayerScheme(sparsity, dtype, group_size=group_size, reconstruct="none")


# Every format; groups of 32 divide none of the in_features.
FORMATS = {
    "0.self_attn.q_proj": scheme(None, "int4", 32),
    "0.self_attn.k_proj": scheme(None, "int4", 32),
    "0.self_attn.v_proj": scheme(None, "float8_e4m3fn"),
    "0.self_attn.o_proj": scheme("2:4", "int4", 32),
    "0.mlp.gate_proj": scheme("2:4", "float8_e4m3fn"),
    "0.mlp.up_proj": scheme("2:4", "float16"),
    "0.mlp.down_proj": scheme(None, "float16"),
    "1.self_attn.q_proj": scheme("2:4", "int8", 64),
    "1.self_attn.k_proj": scheme(None, "int8", 32),
    "1.self_attn.v_proj": scheme(None, "float32"),
    "1.self_attn.o_proj": scheme(0.5, "int8"),
    "1.mlp.up_proj": scheme("2:4", "int4", -1),
    "1.mlp.down_proj": scheme("2:4", "int4", 128),
}
CONFIG = HWPQConfig(
    default=scheme("2:4", "int8"),
    overrides={f"model.layers.{name}": each for name, each in FORMATS.items()},
    group_policy="pad",
)


def logits(model, prompts, more):
    """Logits of every position of the prompts, then those of decoding: all get one id, then the last one another."""
    session = BatchSession(model)
    whole = np.concatenate(session.prefill(prompts, all_logits=True))
    last = len(prompts) - 1
    first = session.decode({row: int(more[row]) for row in range(len(prompts))})
    return whole, first, session.decode({last: int(more[-1])})[last]


def test_interpreted_kernels():
    """All kernels of a model, as PTX: prefill and decode of two sequences of unequal lengths."""
    hf = tiny_qwen2(tie_word_embeddings=True)
    options = {"config": CONFIG, "calibration": None, "max_batch": 2, "max_seq_len": 24}
    cpu = hwpq_tvm.build(hf, "cpu", progress=False, **options)
    gpu = gpu_on_host.build(hf, "cuda:sm_89", gpu_on_host.interpreted, **options)
    rng = np.random.default_rng()
    prompts = [rng.integers(0, hf.config.vocab_size, length) for length in (3, 8)]
    more = rng.integers(0, hf.config.vocab_size, 3)
    # Float8 activations have 3 bits of mantissa; kernels alone are held to tighter bounds in their own tests.
    for found, expected in zip(logits(gpu, prompts, more), logits(cpu, prompts, more), strict=True):
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
