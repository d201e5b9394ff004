"""Linears on packed integers, compiled for other CPUs: exact against NumPy, and illegal on their predecessors."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu.linear_int8 import avx512_schedule
from hwpq_tvm.schedules.cpu.linear_space import Avx512FusedParameters, Avx512GemmParameters, LinearParameters
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows

from ..schedules import reference
from ..schedules.cpu.test_linear_int8 import check
from .kernels import emulator
from .machine import IllegalInstruction

ISAS = ["neon_dotprod", "avx512vnni"]
# Every layout with one scale for a row; half a tile, a tile and two tiles to a group.
LABELS = ["sparse24_int8", "dense_int8", "sparse24_int4", "dense_int4"]
LABELS += ["sparse24_int4.g32", "dense_int4.g64", "sparse24_int4.g128"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("lead", "M"), [((1, 1), 1), ((1, "seq_len"), 11)], ids=["gemv", "gemm"])
def test_equal_to_numpy(isa: str, label: str, lead: tuple, M: int) -> None:
    # Two blocks of rows, the second with 5; the third tile has 20 columns.
    cpu, N, K = emulator(isa), 13, 148
    func, choice = registry.schedule(reference.BY_LABEL[label].linear(lead, N, K), cpu.target)
    assert choice == registry.ScheduleChoice(f"{isa}.{label}.{'gemv' if M == 1 else 'gemm'}", "default")
    check(cpu.build(func), np.random.default_rng(M), label, (1, M), N, K, rows=1 if M == 1 else padded_rows(M))


@pytest.mark.parametrize("label", ["sparse24_int4.g64", "dense_int8"])
@pytest.mark.parametrize(
    "parameters", [Avx512FusedParameters(2, 4, 2, 1280), Avx512GemmParameters(2, 4, 1 << 9, 4, 1280)]
)
def test_choices_of_a_tuner(label: str, parameters: LinearParameters) -> None:
    cpu, M, N, K = emulator("avx512vnni"), 5, 13, 148
    func = avx512_schedule(reference.BY_LABEL[label].linear((1, M), N, K), cpu.target, parameters)
    check(cpu.build(func), np.random.default_rng(M), label, (1, M), N, K, rows=padded_rows(M))


@pytest.mark.parametrize("isa", ISAS)
def test_a_large_weight_is_cut_in_tasks(isa: str) -> None:
    """Enough blocks for several streams and threads; 1 in every weight, so that each row is the sum of its inputs."""
    cpu, N, K = emulator(isa), 264, 512
    func, _ = registry.schedule(reference.BY_LABEL["dense_int8"].linear((1, 1), N, K), cpu.target)
    xq = np.random.default_rng(0).integers(-127, 128, (1, activation_columns(K)), np.int8)
    out = reference.untouched((1, 1, N), "float32")
    weight, scale = np.ones((N // 8, K // 64, 16, 32), np.int8), np.arange(N, dtype=np.float32)
    cpu.build(func)(xq, np.ones(1, np.float32), weight, scale, out)
    np.testing.assert_array_equal(out[0, 0], scale * xq.sum(dtype=np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_a_cpu_without_the_dot_product_does_not_run_it(isa: str) -> None:
    cpu, N, K = emulator(isa), 8, 64
    func, _ = registry.schedule(reference.BY_LABEL["dense_int8"].linear((1, 1), N, K), cpu.target)
    run, arguments = (
        cpu.build(func),
        (np.ones((1, 128), np.int8), np.ones(1, np.float32), np.ones((1, 1, 16, 32), np.int8)),
    )
    out = reference.untouched((1, 1, N), "float32")
    with pytest.raises(IllegalInstruction) as error:
        run(*arguments, np.ones(N, np.float32), out, model="older")
    (instruction,) = error.value.args
    if isa == "neon_dotprod":
        # sdot (by element): 0100 1111 10.. .... 1110 .0.. .... ....
        assert int.from_bytes(instruction, "little") & 0xFFC0F400 == 0x4F80E000
    else:
        # EVEX prefix of the map 0F38; opcode of vpdpbusd.
        assert (instruction[0], instruction[4]) == (0x62, 0x50)
    assert (out == 93).all()
    run(*arguments, np.ones(N, np.float32), out)
    assert (out == 64).all()
