"""Shared memory that the kernels of a function ask for."""

from hwpq_tvm.schedules.cuda import linear
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.norm import schedule
from hwpq_tvm.schedules.cuda.shared_memory import dynamic_shared_bytes
from hwpq_tvm.schedules.linear_mma import linear_mma
from hwpq_tvm.schedules.norm import norm
from hwpq_tvm.targets import resolve_target

SM_80 = resolve_target("cuda:sm_80")


def test_the_largest_of_several_kernels_counts() -> None:
    plan = ((16, MmaParameters(1, 2, 16, stages=2)), (32, MmaParameters(4, 2, 128)), (None, MmaParameters(2, 1, 64)))
    func = linear.schedule_with(linear_mma("mma_sparse24_int8", ("M",), 512, 512), SM_80, plan)
    sizes = [parameters.shared_bytes("mma_sparse24_int8", None) for _, parameters in plan]
    assert dynamic_shared_bytes(func) == max(sizes) > min(sizes) > 0


def test_static_memory_is_not_asked_for() -> None:
    assert dynamic_shared_bytes(schedule(norm(("M",), 576, kind="rms", epsilon=1e-5), SM_80)) == 0
