"""A hand-written causal language model, with the calling convention of compiled ones and a NumPy reference.

logits[p] = table[ids[p]] + sum over j <= p of history[ids[j]], the history rows kept in the KV cache: what a step
computes depends on every token before it, so a cache that is lost, shifted or not reset shows.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import tvm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.runtime.compiled_model import CompiledModel
from hwpq_tvm.runtime.manifest import EntrySpec, GenerationSpec, Manifest, TensorSpec
from hwpq_tvm.versions import installed_version

V = 258  # 256 bytes, a mark of the beginning and one of the end
BOS, EOS = 256, 257
MAX_SEQ_LEN = 24


def cache_shape(batch: int = 1) -> tuple[int, ...]:
    """Shape of the KV cache."""
    return (1, 2, batch, 1, MAX_SEQ_LEN, V)


_CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)


def tiny_module(B: int) -> tvm.IRModule:
    """The model for B sequences at once."""

    @I.ir_module(s_tir=True)
    class TinyModel:
        @T.prim_func(s_tir=True, private=True)
        def remember(
            ids: T.handle,
            past: T.Buffer((B,), "int32"),
            history: T.Buffer((V, V), "float32"),
            cache: T.Buffer((1, 2, B, 1, MAX_SEQ_LEN, V), "float32"),
        ):
            S = T.int64()
            ids_b = T.match_buffer(ids, (B, S), "int64")
            for b, s, v in T.grid(B, S, V):
                with T.sblock("remember"):
                    vb, vs, vv = T.axis.remap("SSS", [b, s, v])
                    if past[vb] + T.cast(vs, "int32") < MAX_SEQ_LEN:
                        cache[0, 0, vb, 0, past[vb] + T.cast(vs, "int32"), vv] = history[ids_b[vb, vs], vv]

        @T.prim_func(s_tir=True, private=True)
        def score(
            ids: T.handle,
            at: T.handle,
            past: T.Buffer((B,), "int32"),
            cache: T.Buffer((1, 2, B, 1, MAX_SEQ_LEN, V), "float32"),
            table: T.Buffer((V, V), "float32"),
            out: T.handle,
        ):
            S = T.int64()
            n = T.int64()
            ids_b = T.match_buffer(ids, (B, S), "int64")
            at_b = T.match_buffer(at, (n,), "int64")
            out_b = T.match_buffer(out, (B, n, V), "float32")
            for b, i, v, j in T.grid(B, n, V, MAX_SEQ_LEN):
                with T.sblock("score"):
                    vb, vi, vv, vj = T.axis.remap("SSSR", [b, i, v, j])
                    with T.init():
                        out_b[vb, vi, vv] = table[ids_b[vb, at_b[vi]], vv]
                    out_b[vb, vi, vv] = out_b[vb, vi, vv] + T.if_then_else(
                        T.cast(vj, "int64") <= T.cast(past[vb], "int64") + at_b[vi],
                        cache[0, 0, vb, 0, vj, vv],
                        T.float32(0),
                    )

        @R.function
        def prefill(
            input_ids: R.Tensor((B, "seq_len"), "int64"),
            logits_at: R.Tensor(("num_logits",), "int64"),
            past_lengths: R.Tensor((B,), "int32"),
            kv_cache: R.Tensor((1, 2, B, 1, MAX_SEQ_LEN, V), "float32"),
            table: R.Tensor((V, V), "float32"),
            history: R.Tensor((V, V), "float32"),
        ):
            R.func_attr({"num_input": 4})
            num_logits = T.int64()
            cls = TinyModel
            with R.dataflow():
                cache = R.call_tir_inplace(
                    cls.remember,
                    (input_ids, past_lengths, history, kv_cache),
                    out_ty=R.Tensor((1, 2, B, 1, MAX_SEQ_LEN, V), "float32"),
                    inplace_indices=[3],
                )
                logits = R.call_tir(
                    cls.score,
                    (input_ids, logits_at, past_lengths, cache, table),
                    out_ty=R.Tensor((B, num_logits, V), "float32"),
                )
                result = (logits, cache)
                R.output(result)
            return result

        @R.function
        def decode(
            input_ids: R.Tensor((B, 1), "int64"),
            past_lengths: R.Tensor((B,), "int32"),
            kv_cache: R.Tensor((1, 2, B, 1, MAX_SEQ_LEN, V), "float32"),
            table: R.Tensor((V, V), "float32"),
            history: R.Tensor((V, V), "float32"),
        ):
            R.func_attr({"num_input": 3})
            cls = TinyModel
            with R.dataflow():
                cache = R.call_tir_inplace(
                    cls.remember,
                    (input_ids, past_lengths, history, kv_cache),
                    out_ty=R.Tensor((1, 2, B, 1, MAX_SEQ_LEN, V), "float32"),
                    inplace_indices=[3],
                )
                logits = R.call_tir(
                    cls.score,
                    (input_ids, R.const([0], "int64"), past_lengths, cache, table),
                    out_ty=R.Tensor((B, 1, V), "float32"),
                )
                result = (logits, cache)
                R.output(result)
            return result

    return TinyModel


def compile_tiny_model(folder: Path, batch: int = 1) -> Path:
    """Shared library of the model for this machine."""
    library = folder / "model.so"
    module = tvm.compile(tiny_module(batch), tvm.target.Target({"kind": "llvm", "num-cores": 2}))
    module.export_library(str(library))
    return library


def tokenizer_files() -> dict[str, bytes]:
    """A byte-level tokenizer: the id of a byte is the byte; it adds no special tokens of its own accord."""
    # GPT-2's printable stand-ins: printable Latin-1 bytes stand for themselves, the others for 256, 257, ...
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    vocabulary = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    config = {"chat_template": _CHAT_TEMPLATE, "eos_token": "</s>"}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


def manifest(batch: int = 1, **changes: object) -> Manifest:
    """Manifest of the model for `batch` sequences; `changes` are fields to replace."""
    logits = TensorSpec("logits", (batch, 1, V), "float32")
    cache = TensorSpec("kv_cache", cache_shape(batch), "float32")
    past = TensorSpec("past_lengths", (batch,), "int32")
    prefill = EntrySpec(
        (
            TensorSpec("input_ids", (batch, "seq_len"), "int64"),
            TensorSpec("logits_at", ("num_logits",), "int64"),
            past,
            cache,
        ),
        (TensorSpec("logits", (batch, "num_logits", V), "float32"), cache),
    )
    decode = EntrySpec((TensorSpec("input_ids", (batch, 1), "int64"), past, cache), (logits, cache))
    fields = {
        "hwpq_tvm_version": "0.1.0",
        "tvm_version": installed_version("apache-tvm"),
        "tvm_ffi_version": installed_version("apache-tvm-ffi"),
        "target": {"kind": "llvm", "num-cores": 2},
        "required_features": (),
        "entries": {"prefill": prefill, "decode": decode},
        "parameters": (TensorSpec("table", (V, V), "float32"), TensorSpec("history", (V, V), "float32")),
        "config": HWPQConfig().to_json(),
        "source": {"path": "tiny", "format": "torch", "bytes": 8 * V * V, "architecture": "TinyForCausalLM"},
        "generation": GenerationSpec(
            batch=batch,
            max_seq_len=MAX_SEQ_LEN,
            kv_cache_shape=cache_shape(batch),
            kv_cache_dtype="float32",
            eos_token_ids=(EOS,),
            bos_token_id=BOS,
            vocab_size=V,
        ),
    }
    return Manifest(**{**fields, **changes})


def report() -> dict[str, object]:
    """A report with a pruned, a skipped and an untouched layer."""
    layer = {"metric": None, "relative_error": None, "sqnr_db": None, "skipped": None}
    return {
        "layers": [
            {
                **layer,
                "name": "model.up_proj",
                "shape": [V, V],
                "scheme": "2:4 int8",
                "kernel": {"prefill": "avx2.sparse24_int8.gemm", "decode": "avx2.sparse24_int8.gemv"},
                "schedule": {"prefill": "default", "decode": "default"},
                "bits_per_weight": 5.03,
                "relative_error": 0.21,
                "sqnr_db": 12.5,
            },
            {
                **layer,
                "name": "model.odd_proj",
                "shape": [V, 30],
                "scheme": "dense int8",
                "kernel": {"prefill": "avx2.dense_int8.gemm", "decode": "avx2.dense_int8.gemv"},
                "schedule": {"prefill": "default", "decode": "portable"},
                "bits_per_weight": 8.2,
                "skipped": "ignored by '.*[od]dd_proj'",
            },
        ],
        "model": {
            "architecture": "TinyForCausalLM",
            "source": "tiny",
            "source_format": "torch",
            "source_bytes": 8 * V * V,
            "weight_bytes": 8 * V * V,
            "bits_per_weight": 5.5,
        },
        "calibration": {"source": None, "tokens": 0},
        "seconds": {"import": 0.5, "compile": 1.25},
        "warnings": ["pruned by magnitude"],
    }


class Reference:
    """The model in NumPy, float64."""

    def __init__(self, table: np.ndarray, history: np.ndarray) -> None:
        self.table, self.history = table.astype(np.float64), history.astype(np.float64)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits of every position, `[len(ids), V]`."""
        return self.table[ids] + np.cumsum(self.history[ids], axis=0)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` tokens that follow `prompt`."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]


def make_model(
    library: Path, table: np.ndarray, history: np.ndarray, *, tokenizer: bool = True, batch: int = 1, **changes: object
) -> CompiledModel:
    """A CompiledModel of those weights; `changes` are fields of its manifest."""
    files = tokenizer_files() if tokenizer else {}
    return CompiledModel(library, {"table": table, "history": history}, manifest(batch, **changes), report(), files)


def random_weights(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random table and history; the end token is never the most likely one."""
    rng = np.random.default_rng(seed)
    table, history = rng.standard_normal((2, V, V)).astype(np.float32)
    table[:, EOS] = -100
    return table, history


def chain(*steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a model that, after steps[i], writes steps[i + 1]."""
    table = np.zeros((V, V), np.float32)
    for before, after in pairwise(steps):
        table[before, after] = 10
    return table, np.zeros((V, V), np.float32)
