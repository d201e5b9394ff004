"""The generic CPU schedule on what Relax's stock lowering makes of a decoder's pieces."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.sym import Analyzer
from tvm_ffi.structural import structural_map

from hwpq_tvm.schedules.cpu.generic import schedule
from hwpq_tvm.schedules.kv_cache import kv_cache_update

from ..reference import skip_unless_native

AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
HIDDEN, HEADS, HEAD_DIM, INNER, VOCABULARY = 96, 3, 32, 160, 50
SYMBOLIC_LENGTH = 37


def _const(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def decoder_pieces(length: int | None, target: tvm.target.Target) -> tvm.IRModule:
    """Functions that Relax makes of a decoder's operators; without a length it is a symbol."""
    s = tvm.tirx.Var("seq_len", "int64") if length is None else length
    shapes = {
        "ids": ((1, s), "int64"),
        "table": ((VOCABULARY, HIDDEN), "float32"),
        "q": ((1, s, HIDDEN), "float32"),
        "cos": ((1, s, HEAD_DIM), "float32"),
        "sin": ((1, s, HEAD_DIM), "float32"),
        "gate_up": ((1, s, 2 * INNER), "float32"),
        "residual": ((1, s, HIDDEN), "float32"),
        "norm": ((HIDDEN,), "float32"),
    }
    v = {name: relax.Var(name, relax.TensorType(shape, dtype)) for name, (shape, dtype) in shapes.items()}
    builder = relax.BlockBuilder()
    emit = builder.emit
    with builder.function("main", list(v.values())):
        with builder.dataflow():
            embedded = emit(op.reshape(op.take(v["table"], op.reshape(v["ids"], (s,)), axis=0), (1, s, HIDDEN)))
            hidden = emit(op.add(embedded, v["residual"]))
            mean = op.mean(op.multiply(hidden, hidden), axis=[-1], keepdims=True)
            normed = op.multiply(v["norm"], op.multiply(hidden, op.rsqrt(op.add(mean, _const(1e-5)))))
            heads = emit(op.permute_dims(op.reshape(v["q"], (1, s, HEADS, HEAD_DIM)), [0, 2, 1, 3]))
            low = op.strided_slice(heads, axes=[3], begin=[0], end=[HEAD_DIM // 2])
            high = op.strided_slice(heads, axes=[3], begin=[HEAD_DIM // 2], end=[HEAD_DIM])
            turned = op.multiply(op.concat([op.negative(high), low], axis=-1), op.expand_dims(v["sin"], 1))
            rotated = op.add(op.multiply(heads, op.expand_dims(v["cos"], 1)), turned)
            gate = op.strided_slice(v["gate_up"], axes=[2], begin=[0], end=[INNER])
            up = op.strided_slice(v["gate_up"], axes=[2], begin=[INNER], end=[2 * INNER])
            gated = op.multiply(op.nn.silu(gate), up)
            column_sums = op.sum(op.multiply(hidden, hidden), axis=[0, 1])
            outputs = [hidden, normed, rotated, gated, column_sums, op.nn.softmax(hidden, axis=-1), op.tanh(hidden)]
            results = [builder.emit_output(emit(output)) for output in outputs]
        builder.emit_func_output(relax.Tuple(results))
    return lowered(builder.get(), target)


def lowered(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Turn operators into TensorIR, and fuse it."""
    passes = relax.transform
    with target:
        return tvm.transform.Sequential(
            [
                passes.LegalizeOps(),
                passes.AnnotateTIROpPattern(),
                passes.FoldConstant(),
                passes.FuseOps(),
                passes.FuseTIR(),
            ]
        )(module)


def arguments_of(func: tvm.tirx.PrimFunc, length: int) -> list[np.ndarray | int]:
    """Draw what a function is called with; symbolic sizes become `length`."""
    rng = np.random.default_rng(8)
    arguments: list[np.ndarray | int] = []
    for parameter in func.params:
        if not hasattr(parameter.ty, "shape"):
            arguments.append(length)
            continue
        shape = [
            int(Analyzer().simplify(structural_map(size, [(tvm.tirx.Var, lambda _: tvm.tirx.IntImm("int64", length))])))
            for size in parameter.ty.shape
        ]
        dtype = str(parameter.ty.dtype)
        integer = "int" in dtype
        drawn = rng.integers(0, VOCABULARY, shape) if integer else np.abs(rng.standard_normal(shape)) + 0.1
        arguments.append(np.asarray(drawn, dtype))
    return arguments


def call(func: tvm.tirx.PrimFunc, arguments: list[np.ndarray | int]) -> np.ndarray:
    """Run a function on this CPU; returns its last argument."""
    skip_unless_native(AVX2)
    built = tvm.compile(func.with_attr("global_symbol", "main"), target=AVX2)
    tensors = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
    built["main"](*tensors)
    return tensors[-1].numpy()


@pytest.fixture(scope="module", params=[1, None], ids=["decode", "prefill"])
def functions(request: pytest.FixtureRequest) -> tuple[int, dict[str, tvm.tirx.PrimFunc]]:
    module = decoder_pieces(request.param, AVX2)
    funcs = {gv.name_hint: f for gv, f in module.functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
    return request.param or SYMBOLIC_LENGTH, funcs


def test_scheduled_functions_compute_the_same(functions: tuple[int, dict[str, tvm.tirx.PrimFunc]]) -> None:
    length, funcs = functions
    assert len(funcs) >= 6
    for name, func in funcs.items():
        arguments = arguments_of(func, length)
        before, after = call(func, arguments), call(schedule(func, AVX2), arguments)
        np.testing.assert_allclose(after, before, rtol=2e-6, atol=1e-6, err_msg=name)
        assert before.std() > 0 or before.size == 1, name


def test_threads_only_where_there_is_work(functions: tuple[int, dict[str, tvm.tirx.PrimFunc]]) -> None:
    length, funcs = functions
    parallel = {name: "T.parallel" in schedule(func, AVX2).script() for name, func in funcs.items()}
    if length == 1:
        assert not any(parallel.values()), parallel
    else:
        assert all(value for name, value in parallel.items() if "softmax" in name or "silu" in name or "sum" in name)


def test_norm_becomes_one_loop_over_rows(functions: tuple[int, dict[str, tvm.tirx.PrimFunc]]) -> None:
    _, funcs = functions
    (norm,) = [func for name, func in funcs.items() if "rsqrt" in name]
    script = schedule(norm, AVX2).script()
    body = script[script.index("sblock_alloc_buffer") :]
    outermost = min(len(line) - len(line.lstrip()) for line in body.splitlines() if line.lstrip().startswith("for "))
    assert sum(line.startswith(" " * outermost + "for ") for line in body.splitlines()) == 1
    assert "T.vectorized" in script


def test_exponentials_become_polynomials(functions: tuple[int, dict[str, tvm.tirx.PrimFunc]]) -> None:
    _, funcs = functions
    for name, func in funcs.items():
        script = schedule(func, AVX2).script()
        assert not any(call in script for call in ("T.exp(", "T.sigmoid(", "T.tanh(")), name


def test_function_without_blocks_keeps_its_loops() -> None:
    func = kv_cache_update(layers=1, batch=1, kv_heads=1, head_dim=4, max_len=8, seq_len=1)
    tvm.ir.assert_structural_equal(schedule(func, AVX2), func)
