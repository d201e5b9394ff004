"""The descriptions of attention and cache update against NumPy, alone and inside a Relax module."""

import numpy as np
import pytest
import tvm
from tvm import relax

from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.kv_cache import kv_cache_update

from .attention_reference import Case, attended, run, updated_cache

CASES = [
    Case(past=(3,), heads=4, kv_heads=2, head_dim=8, max_len=16, seq_len=1),
    Case(past=(0, 3, 38), heads=6, kv_heads=2, head_dim=20, max_len=40, seq_len=5, symbolic=True),
    Case(past=(0, 12), heads=3, kv_heads=1, head_dim=7, max_len=30, seq_len=9, window=4, softcap=5.0, bias=True),
    Case(past=(0, 3, 38), heads=6, kv_heads=2, head_dim=21, max_len=40, seq_len=5, symbolic=True, cache_dtype="int8"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_descriptions_compute_attention(case: Case) -> None:
    inputs = case.inputs(np.random.default_rng(1))
    cache, out = run(case, case.update(), case.attention(), inputs, 1, {"kind": "llvm"})
    expected = updated_cache(inputs, 1)
    np.testing.assert_array_equal(cache, expected)
    np.testing.assert_allclose(out, attended(case, inputs, expected, 1), atol=5e-6)


def test_descriptions_are_made_once_for_a_shape() -> None:
    shape = {"layers": 2, "batch": 1, "kv_heads": 2, "head_dim": 8, "max_len": 16, "seq_len": None}
    assert kv_cache_update(**shape) is kv_cache_update(**shape)
    first = attention(**shape, heads=4, scale=0.5, window=3)
    assert first is attention(**shape, heads=4, scale=0.5, window=3)
    fields = description(first)
    assert fields is not None
    assert (fields["op"], fields["window"], fields["seq_len"], fields["scale"]) == ("attention", 3, -1, 0.5)


def test_relax_changes_the_cache_in_place_with_constant_layers() -> None:
    layers, heads, head_dim, max_len, length = 3, 2, 4, 8, 3
    seq_len = tvm.tirx.Var("seq_len", "int64")
    cache_type = relax.TensorType((layers, 2, 1, heads, max_len, head_dim), "float32")
    new_type = relax.TensorType((1, heads, seq_len, head_dim), "float32")
    query, past, cache = (
        relax.Var("query", new_type),
        relax.Var("past", relax.TensorType((1,), "int32")),
        relax.Var("cache", cache_type),
    )
    shape = {"layers": layers, "batch": 1, "kv_heads": heads, "head_dim": head_dim, "max_len": max_len}
    builder = relax.BlockBuilder()
    with builder.function("main", [query, past, cache]):
        with builder.dataflow():
            update = builder.add_func(kv_cache_update(**shape, seq_len=None), "update")
            attend = builder.add_func(attention(**shape, seq_len=None, heads=heads, scale=0.5), "attend")
            state, x = cache, query
            for layer in range(layers):
                index = relax.prim_value(layer)
                call = relax.op.call_tir_inplace(update, [x, x, past, state, index], [3], cache_type)
                state = builder.emit(call)
                out_type = relax.TensorType((1, seq_len, heads, head_dim), "float32")
                out = builder.emit(relax.op.call_tir(attend, [x, state, past, index], out_type))
                x = builder.emit(relax.op.permute_dims(out, [0, 2, 1, 3]))
            results = [builder.emit_output(x), builder.emit_output(state)]
        builder.emit_func_output(relax.Tuple(results))
    executable = tvm.compile(builder.get(), target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())

    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, heads, length, head_dim)).astype("float32")
    cache_before = rng.standard_normal((layers, 2, 1, heads, max_len, head_dim)).astype("float32")
    given = tvm.runtime.tensor(cache_before)
    out, returned = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(np.array([2], "int32")), given)

    expected = cache_before
    case = Case(past=(2,), heads=heads, kv_heads=heads, head_dim=head_dim, max_len=max_len, seq_len=length)
    for layer in range(layers):
        inputs = {"query": x, "key": x, "value": x, "past": np.array([2]), "cache": expected}
        expected = updated_cache(inputs, layer)
        x = attended(case, inputs, expected, layer).transpose(0, 2, 1, 3).astype("float32")
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(out.numpy(), x, atol=1e-5)
    assert np.from_dlpack(returned).ctypes.data == np.from_dlpack(given).ctypes.data
