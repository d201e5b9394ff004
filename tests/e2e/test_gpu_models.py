"""Tiny models built for GPUs, run on the host: their logits are those of the same weights on a CPU."""

import numpy as np

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.runtime.session import Session
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


def logits(model, ids):
    """Logits of a prefill, and of the same ids when the last ones come one by one."""
    session = Session(model)
    return model(ids), np.stack([session.prefill(ids[:-2])[0], *(session.decode(int(i)) for i in ids[-2:])])


def test_interpreted_kernels():
    """All kernels of a model, as PTX: prefill and decode."""
    hf = tiny_qwen2(tie_word_embeddings=True)
    options = {"config": CONFIG, "calibration": None, "max_seq_len": 24}
    cpu = hwpq_tvm.build(hf, "cpu", progress=False, **options)
    gpu = gpu_on_host.build(hf, "cuda:sm_89", gpu_on_host.interpreted, **options)
    ids = np.random.default_rng().integers(0, hf.config.vocab_size, 11)
    # Float8 activations have 3 bits of mantissa; kernels alone are held to tighter bounds in their own tests.
    for found, expected in zip(logits(gpu, ids), logits(cpu, ids), strict=True):
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
