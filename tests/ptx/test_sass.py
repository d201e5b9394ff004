"""The disassembly checks see what they should: instructions, registers, shared memory, spills, local memory."""

from dataclasses import replace
from pathlib import Path

import pytest
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.threads import barrier, launch, registers, shared, strided
from hwpq_tvm.schedules.tir_builder import argument, loop, otherwise, prim_func, store, symbol, then

from . import sass

SPARSE = {
    "int8": ("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32", "uint32"),
    "float16": ("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "float32"),
    "float8": ("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.f32.e4m3.e4m3.f32", "float32"),
}


def product(instruction: str, dtype: str) -> PrimFunc:
    """One warp, one sparse product of what is in memory."""
    with prim_func("product") as result:
        A = argument("A", (32, 16), "uint32")
        D = argument("D", (32, 4), dtype)
        with launch((1,), 32) as (_, lane):
            d = registers("d", 4, dtype)
            for i in range(4):
                store(d, [i], T.Cast(dtype, 0))
            a = [A[lane, i] for i in range(9)]
            accumulators = [d[i] for i in range(4)]
            T.evaluate(T.ptx[instruction](*accumulators, *a[:8], *accumulators, a[8], 0))
            for i in range(4):
                store(D, [lane, i], d[i])
    return result[0]


def copies(threads: int = 64) -> PrimFunc:
    """Two kernels under a condition of the host: one through 65 KB of shared memory, one with a vector per thread."""
    with prim_func("copies") as result:
        M = symbol("M")
        X = argument("X", (M, 256), "float32")
        Y = argument("Y", (M, 256), "float32")
        with T.If(M <= 8):
            with then(), launch((M,), threads) as ((row,), thread):
                first = shared("first", (256,), "float32", dynamic=True)
                second = shared("second", (16384,), "float32", dynamic=True)
                with strided("i", 256, thread, threads) as i:
                    store(first, [i], X[row, i])
                    store(second, [i * 4], X[row, i])
                barrier()
                with strided("j", 256, thread, threads) as j:
                    store(Y, [row, j], first[255 - j] + second[(j ^ 3) * 4])
            with otherwise(), launch((M,), 64) as ((row,), thread):
                store(Y, [row, T.Ramp(thread * 4, 1, 4)], X[row, T.Ramp(thread * 4, 1, 4)])
    return result[0]


def indexed_by_a_loop() -> PrimFunc:
    """An array of a thread whose indices are known at run time only: it can't be in registers."""
    with prim_func("indexed") as result:
        M = symbol("M")
        X = argument("X", (M,), "int32")
        Y = argument("Y", (64,), "int32")
        with launch((1,), 32) as (_, lane):
            values = registers("values", 64, "int32")
            with loop("i", M) as i:
                store(values, [X[i] & 63], T.Cast("int32", i))
            with loop("j", 64) as j:
                store(Y, [j], values[T.Cast("int32", j) ^ (lane & 1)])
    return result[0]


@pytest.mark.parametrize(
    ("arch", "weights", "opcode"),
    [
        ("sm_80", "int8", "IMMA.SP.16864.S8.S8"),
        ("sm_86", "float16", "HMMA.SP.16832.F32"),
        ("sm_89", "float8", "QMMA.SP.16864.F32.E4M3.E4M3"),
        ("sm_90a", "float8", "HMMA.SP.16832.F32"),  # emulated: what wgmma is for
        ("sm_90a", "int8", "IMMA.SP.16864.S8.S8"),
    ],
)
def test_instruction_of_the_sparse_product(arch: str, weights: str, opcode: str, tmp_path: Path) -> None:
    (facts,) = sass.inspect(product(*SPARSE[weights]), arch, tmp_path)
    sass.check(facts, expect=[opcode, "LDG.E"], forbid=["LDGSTS"])
    assert facts.threads == 32 and facts.shared == 0
    with pytest.raises(AssertionError, match="no LDGSTS"):
        sass.check(facts, expect=["LDGSTS"])


def test_every_kernel_of_a_function(tmp_path: Path) -> None:
    first, second = sorted(sass.inspect(copies(), "sm_86", tmp_path), key=lambda facts: facts.name)
    sass.check([first, second])
    assert (first.threads, first.static_shared, first.dynamic_shared) == (64, 0, 256 * 4 + 16384 * 4)
    assert (second.threads, second.shared) == (64, 0)
    assert second.opcodes["LDG.E.128"] == second.opcodes["STG.E.128"] == 1 and not second.opcodes["LDS"]
    assert first.opcodes["LDS"] and first.opcodes["STS"] and not first.opcodes["LDG.E.128"]


def test_limits(tmp_path: Path) -> None:
    facts = sass.inspect(copies(), "sm_86", tmp_path)[0]
    for changed, message in [
        ({"dynamic_shared": 99 * 1024 + 1}, "shared memory of a block"),
        ({"static_shared": 48 * 1024 + 1}, "static shared"),
        ({"registers": 65, "threads": 1024}, "registers of a block"),
        ({"threads": 1025}, "threads of a block"),
        ({"spills": 4}, "spills"),
        ({"stack": 8}, "stack"),
        ({"warnings": ("wgmma serialized",)}, "serialized"),
    ]:
        with pytest.raises(AssertionError, match=message):
            sass.check(replace(facts, **changed))


def test_local_memory_is_seen(tmp_path: Path) -> None:
    (facts,) = sass.inspect(indexed_by_a_loop(), "sm_80", tmp_path)
    assert facts.stack >= 256 and facts.opcodes["STL"] and facts.opcodes["LDL"]
    with pytest.raises(AssertionError, match="stack"):
        sass.check(facts)


def test_several_functions_in_one_source(tmp_path: Path) -> None:
    names = {facts.name for facts in sass.inspect([product(*SPARSE["int8"]), indexed_by_a_loop()], "sm_80", tmp_path)}
    assert names == {"func0_kernel", "func1_kernel"}


def test_warnings_of_ptxas() -> None:
    report = """
ptxas info    : Compiling entry function 'a_kernel' for 'sm_90a'
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'b_kernel'
ptxas info    : Compiling entry function 'b_kernel' for 'sm_90a'
ptxas info    : Used 24 registers, used 0 barriers
"""
    assert sass.warnings_of(report, "a_kernel") == ()
    (warning,) = sass.warnings_of(report, "b_kernel")
    assert "serialized" in warning
    assert len(sass.warnings_of("ptxas warning : something is wrong", "a_kernel")) == 1
