"""The generic CUDA schedule on what Relax's lowering makes of operators, run by the PTX interpreter."""

from functools import cache

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from hwpq_tvm.errors import TargetError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cuda.generic import SINGLE_THREAD, schedule
from hwpq_tvm.schedules.kernel_attr import KERNEL_ATTR
from hwpq_tvm.schedules.kv_cache import kv_cache_update

from ...ptx.run import compile_many, run, target
from ..cpu.test_generic import AVX2, SYMBOLIC_LENGTH, VOCABULARY, arguments_of, decoder_pieces, lowered
from ..reference import skip_unless_native

ARCH = "sm_80"


def other_operators() -> tvm.IRModule:
    """Reductions to scalars, of integers, of pairs; matrices; what makes numbers from none."""
    s = tvm.tirx.Var("seq_len", "int64")
    x = relax.Var("x", relax.TensorType((1, s, 24), "float32"))
    w = relax.Var("w", relax.TensorType((24, 10), "float32"))
    ids = relax.Var("ids", relax.TensorType((1, s), "int64"))
    scores = relax.Var("scores", relax.TensorType((3, VOCABULARY), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, w, ids, scores]):
        with builder.dataflow():
            outputs = [
                op.matmul(x, w),
                op.matmul(x, op.permute_dims(x, [0, 2, 1])),
                op.sum(x),
                op.max(x, axis=[1]),
                op.prod(op.astype(ids, "int32")),
                op.argmax(scores, axis=-1),
                op.arange(0, s, 1, "int64"),
                op.full((1, s), relax.const(3, "int64"), "int64"),
                op.astype(op.add(ids, relax.const(1, "int64")), "int32"),
                op.variance(x, axis=[-1]),
                op.where(op.greater(x, relax.const(0.5, "float32")), x, op.exp(x)),
                op.strided_slice(x, axes=[1], begin=[s - 1], end=[s]),
                op.nn.log_softmax(scores),
                op.divide(op.sum(x, axis=[1]), op.astype(op.sum(ids, axis=[1], keepdims=True), "float32")),
                op.concat([x, op.negative(x)], axis=1),
                op.take(scores, op.reshape(ids, (s,)), axis=1),
            ]
            results = [builder.emit_output(builder.emit(output)) for output in outputs]
        builder.emit_func_output(relax.Tuple(results))
    return lowered(builder.get(), target(ARCH))


@cache
def functions(part: str) -> dict[str, tvm.tirx.PrimFunc]:
    """Functions of a module by name."""
    lengths = {"decode": 1, "prefill": None}
    module = decoder_pieces(lengths[part], target(ARCH)) if part in lengths else other_operators()
    return {gv.name_hint: func for gv, func in module.functions.items() if isinstance(func, tvm.tirx.PrimFunc)}


@pytest.mark.parametrize(("part", "least"), [("decode", 10), ("prefill", 12), ("others", 16)])
def test_computes_what_the_unscheduled_function_does(part: str, least: int) -> None:
    skip_unless_native(AVX2)
    length, funcs = 1 if part == "decode" else SYMBOLIC_LENGTH, functions(part)
    assert len(funcs) >= least
    named = {name: func.with_attr("global_symbol", name) for name, func in funcs.items()}
    on_cpu = tvm.compile(tvm.IRModule(named), target=AVX2)
    on_gpu = compile_many([schedule(func, target(ARCH)) for func in funcs.values()], ARCH)
    for (name, func), kernel in zip(funcs.items(), on_gpu, strict=True):
        arguments = arguments_of(func, length)
        tensors = [tvm.runtime.tensor(each) if isinstance(each, np.ndarray) else each for each in arguments]
        on_cpu[name](*tensors)
        kernel.run(*arguments)
        # The output is the last tensor; symbolic sizes may follow it.
        found, expected = [pair for pair in zip(arguments, tensors, strict=True) if isinstance(pair[0], np.ndarray)][-1]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-6, err_msg=name)
        assert found.any() or found.size == 1, name


def test_function_without_blocks_runs_in_one_thread() -> None:
    func = kv_cache_update(layers=1, batch=1, kv_heads=2, head_dim=4, max_len=8, seq_len=1)
    key, value = np.random.default_rng().standard_normal((2, 1, 2, 1, 4)).astype("float32")
    kv_cache, past = np.zeros((1, 2, 1, 2, 8, 4), "float32"), np.array([5], "int32")
    scheduled = schedule(func, target(ARCH))
    run(scheduled, ARCH, key, value, past, kv_cache, 0)
    np.testing.assert_array_equal(kv_cache[0, :, :, :, 5], np.stack([key, value])[:, :, :, 0])
    assert np.count_nonzero(kv_cache) == key.size + value.size
    assert scheduled.attrs[SINGLE_THREAD]
    _, choice = registry.schedule(func.without_attr(KERNEL_ATTR), target(ARCH))
    assert choice == registry.ScheduleChoice("generic", "single thread")


def test_function_with_memory_of_its_own_is_an_error() -> None:
    """It would be allocated by the host, or for each thread: neither is what it says."""
    func = kv_cache_update(layers=1, batch=1, kv_heads=1, head_dim=4, max_len=8, seq_len=1, cache_dtype="int8")
    with pytest.raises(TargetError, match="memory of its own"):
        schedule(func, target(ARCH))


def test_kernels_that_are_scheduled_stay() -> None:
    func = functions("decode")["softmax"]
    scheduled = schedule(func, target(ARCH))
    assert schedule(scheduled, target(ARCH)).same_as(scheduled)
