"""Static functions keep the tensors that they compute on the way; results belong to who called."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.script import relax as R

from hwpq_tvm.relax_passes import static_tensors
from hwpq_tvm.relax_passes.pipeline import compile_module, lower, optimise
from hwpq_tvm.relax_passes.static_tensors import StaticTensors
from hwpq_tvm.runtime.tvm_runtime import VirtualMachine, as_array, as_tensor
from hwpq_tvm.targets import host_target


def module(rows: int | str) -> tvm.IRModule:
    """``a @ w @ (b @ w).T @ (a @ w)``, flattened, and ``a @ w``: intermediates that live side by side."""
    builder = relax.BlockBuilder()
    rows = tvm.tirx.Var(rows, "int64") if isinstance(rows, str) else rows
    a, b = (relax.Var(name, R.Tensor((rows, 5), "float32")) for name in "ab")
    w = relax.Var("w", R.Tensor((5, 3), "float32"))
    with builder.function("main", [a, b, w], attrs={"num_input": 2}):
        with builder.dataflow():
            left, right = builder.emit(relax.op.matmul(a, w)), builder.emit(relax.op.matmul(b, w))
            total = builder.emit(relax.op.matmul(left, relax.op.permute_dims(right)))
            product = builder.emit(relax.op.matmul(total, left))
            flat = builder.emit(relax.op.reshape(product, (rows * 3,)))
            again = builder.emit(relax.op.matmul(a, w))
            results = builder.emit_output(relax.Tuple([flat, again]))
        builder.emit_func_output(results)
    return builder.get()


def calls(mod: tvm.IRModule, op: str) -> int:
    """Calls of an operator in `main`."""
    found = []

    def look(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == op:
            found.append(expr)

    relax.analysis.post_order_visit(mod["main"], look)
    return len(found)


def test_a_call_allocates_its_results_only() -> None:
    lowered = lower(optimise(module(4)))
    assert calls(lowered, "relax.vm.alloc_tensor") == calls(lowered, "relax.vm.alloc_storage") == 2
    assert calls(lower(optimise(module("rows"))), "relax.vm.alloc_tensor") > 2


def test_large_tensors_stay_in_planned_memory(monkeypatch) -> None:
    monkeypatch.setattr(static_tensors, "LARGEST", 4 * 4 * 4 - 1)  # bytes: of [4, 3] it is less, of [4, 4] more
    lowered = lower(optimise(module(4)))
    assert calls(lowered, "relax.vm.alloc_tensor") == calls(lowered, "relax.vm.alloc_storage") == 3


def test_functions_with_dimensions_that_vary_stay_as_they_are() -> None:
    plan = [
        relax.transform.ToNonDataflow(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
    ]
    for rows, stays in (("rows", True), (4, False)):
        mod = tvm.transform.Sequential(plan)(optimise(module(rows)))
        before = mod.clone()
        after = StaticTensors()(mod)
        tvm.ir.assert_structural_equal(mod, before)
        assert tvm_ffi.structural_equal(after, before) == stays


def test_constants_of_the_model_keep_their_values(tmp_path) -> None:
    """Zeros of the shape of what is computed on the way: the virtual machine keeps one of all equal constants."""
    builder = relax.BlockBuilder()
    x, w = relax.Var("x", R.Tensor((1, 6), "float32")), relax.Var("w", R.Tensor((6, 6), "float32"))
    with builder.function("main", [x, w], attrs={"num_input": 1}):
        with builder.dataflow():
            first = builder.emit(relax.op.matmul(x, w))
            second = builder.emit(relax.op.matmul(first, w))
            zeros = builder.emit(relax.op.matmul(relax.const(np.zeros((1, 6), np.float32)), w))
            third = builder.emit(relax.op.matmul(second, w))
            result = builder.emit_output(relax.op.add(third, zeros))
        builder.emit_func_output(result)
    compile_module(builder.get(), host_target(), tmp_path / "model.so")
    run = VirtualMachine(tmp_path / "model.so").entry("main")
    x, w = np.ones((1, 6), np.float32), np.eye(6, dtype=np.float32) * 2
    for _ in range(3):
        np.testing.assert_array_equal(as_array(run(as_tensor(x), as_tensor(w))), x * 8)


@pytest.mark.parametrize("rows", [1, 4])
def test_results_are_right_and_last(rows: int, tmp_path) -> None:
    compile_module(module(rows), host_target(), tmp_path / "model.so")
    run = VirtualMachine(tmp_path / "model.so").entry("main")
    rng = np.random.default_rng(rows)
    found, expected = [], []
    for _ in range(3):
        a, b, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 5), (rows, 5), (5, 3)))
        found.append([as_array(result) for result in run(*map(as_tensor, (a, b, w)))])
        left, right = a @ w, b @ w
        expected.append([(left @ right.T @ left).reshape(-1), left])
    # Compared when all calls are over: a later one must not have written to an earlier one's results.
    for mine, theirs in zip(found, expected, strict=True):
        for result, reference in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-5)
