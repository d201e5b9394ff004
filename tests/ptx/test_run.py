"""Functions of TensorIR from their arguments to their results: lowering, nvcc, the host part, several launches."""

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.errors import DependencyError
from hwpq_tvm.schedules.cuda.threads import barrier, block_reduce, launch, registers, shared, strided
from hwpq_tvm.schedules.tir_builder import argument, let, loop, otherwise, prim_func, store, symbol, then, when

from . import nvcc as nvcc_module
from .nvcc import compiler
from .run import compile_many, compiled, run
from .violation import Violation


@pytest.fixture(autouse=True)
def nvcc():
    compiler()


def elementwise(columns=200):
    """``out[m, n] = x[m, n] * scale + m`` for any m, with an int64 scalar argument."""
    with prim_func("elementwise") as result:
        M = symbol("M")
        x = argument("x", (M, columns), "float32")
        layer = T.arg("layer", T.int64())
        out = argument("out", (M, columns), "float32")
        with launch((M, -(-columns // 64)), 64) as ((row, tile), thread):
            n = let("n", tile * 64 + thread)
            with when(n < columns):
                store(out, [row, n], x[row, n] * T.Cast("float32", layer) + T.Cast("float32", row))
    return result[0]


def two_ways(split=8):
    """Sums of rows: few rows by one block each, many by partial sums in a workspace and a second kernel."""
    with prim_func("sums") as result:
        M = symbol("M")
        x = argument("x", (M, 256), "float32")
        out = argument("out", (M,), "float32")
        partial = T.alloc_buffer((4, M), "float32", scope="global")
        with T.If(split >= M):
            with then(), launch((M,), 96) as ((row,), thread):
                total = registers("total", 1, "float32")
                store(total, [0], T.float32(0))
                with strided("k", 256, thread, 96) as k:
                    store(total, [0], total[0] + x[row, k])
                value = block_reduce(total[0], "sum", 96, thread, "sum")
                with when(thread == 0):
                    store(out, [row], value)
            with otherwise():
                with launch((M, 4), 64) as ((row, part), thread):
                    cells = shared("cells", (64,), "float32")
                    store(cells, [thread], x[row, part * 64 + thread])
                    barrier()
                    with when(thread == 0):
                        total = registers("total", 1, "float32")
                        store(total, [0], T.float32(0))
                        with loop("k", 64) as k:
                            store(total, [0], total[0] + cells[k])
                        store(partial, [part, row], total[0])
                with launch(((M + 63) // 64,), 64) as ((block,), thread):
                    row = let("row", block * 64 + thread)
                    with when(row < M):
                        store(out, [row], partial[0, row] + partial[1, row] + partial[2, row] + partial[3, row])
    return result[0]


def test_scalars_symbols_and_grids():
    rng = np.random.default_rng()
    func = elementwise()
    for rows in (1, 7, 30):
        x = rng.standard_normal((rows, 200)).astype(np.float32)
        out = np.full((rows, 200), 93, np.float32)
        report = run(func, "sm_80", x, 5, out)
        np.testing.assert_allclose(out, x * 5 + np.arange(rows)[:, None], rtol=1e-6, atol=1e-6)
        assert report.launches[0].grid == (rows, 4, 1)
        assert report.opcodes()["st.global.f32"] + report.opcodes()["st.global.b32"] == -(-rows * 200 // 32)
    with pytest.raises(ValueError, match="expected"):
        run(func, "sm_80", x, 5, out[:, :100].copy())


@pytest.mark.parametrize("rows", [1, 8, 9, 130])
def test_the_host_chooses_and_allocates(rows):
    x = np.random.default_rng().standard_normal((rows, 256)).astype(np.float32)
    out = np.full(rows, 93, np.float32)
    report = run(KERNELS["sums"], "sm_80", x, out)
    np.testing.assert_allclose(out, x.astype(np.float64).sum(1), rtol=1e-4, atol=1e-4)
    assert len(report.launches) == (1 if rows <= 8 else 2)
    assert all(each.conflicts() == 0 for each in report.launches)


KERNELS = {"sums": two_ways()}


def test_many_functions_share_a_module():
    first, second = compile_many([elementwise(70), two_ways()], "sm_90a")
    assert first.ptx is second.ptx
    x = np.random.default_rng().standard_normal((3, 70)).astype(np.float32)
    out = np.zeros_like(x)
    first.run(x, 2, out)
    np.testing.assert_allclose(out, x * 2 + np.arange(3)[:, None], rtol=1e-6, atol=1e-6)
    wide, sums = np.ones((9, 256), np.float32), np.zeros(9, np.float32)
    second.run(wide, sums)
    assert (sums == 256).all()
    assert compiled(KERNELS["sums"], "sm_80") is compiled(KERNELS["sums"], "sm_80")


def test_a_missing_compiler_skips_unless_it_is_required(monkeypatch):
    def missing():
        raise DependencyError("nvcc was not found")

    monkeypatch.setattr(nvcc_module, "find_toolkit", missing)
    monkeypatch.delenv(nvcc_module.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="nvcc was not found"):
        nvcc_module.compiler()
    monkeypatch.setenv(nvcc_module.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="nvcc was not found"):
        nvcc_module.compiler()


def test_a_bound_that_is_off_by_one_is_caught():
    with prim_func("bad") as result:
        x = argument("x", (100,), "float32")
        out = argument("out", (100,), "float32")
        with launch((2,), 64) as ((block,), thread):
            n = let("n", block * 64 + thread)
            with when(n <= 100):
                store(out, [n], x[n] * 2)
    with pytest.raises(Violation, match="out of bounds"):
        run(result[0], "sm_80", np.ones(100, np.float32), np.zeros(100, np.float32))
