"""Candidates that are right, wrong, or a nuisance; processes import this module."""

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.lead import row_index
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store
from hwpq_tvm.tuning.builder import Builder

# Small, with padding along both N and K.
SMALL = LinearWorkload("sparse24_int4", "int8", 64, 3, 24, 192)


@dataclass(frozen=True)
class Right:
    """The kernel that is chosen by hand."""

    workload: LinearWorkload

    def kernel(self, target: Target) -> PrimFunc:
        return registry.schedule(self.workload.func(), target)[0]


@dataclass(frozen=True)
class Faulty:
    """A kernel that writes zeros ("zero"), kills its process ("crash") or never returns ("hang")."""

    workload: LinearWorkload
    fault: str

    def kernel(self, target: Target) -> PrimFunc:
        arguments = self.workload.func().params
        with prim_func("faulty") as result:
            *_, out = [argument(each.name, each.ty.shape, each.ty.dtype) for each in arguments]
            if self.fault != "zero":
                T.evaluate(T.call_extern("int32", {"crash": "abort", "hang": "pause"}[self.fault]))
            with loop("m", self.workload.M) as m, loop("n", self.workload.N) as n:
                store(out, [*row_index(m, [1, self.workload.M]), n], T.float32(0))
        return result[0]


@dataclass(frozen=True)
class Unbuildable:
    """A candidate whose build raises ("raise"), dies ("die"), finds no room ("full") or never ends ("hang")."""

    fault: str

    def kernel(self, target: Target) -> PrimFunc:
        if self.fault == "hang":
            time.sleep(1000)
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise ValueError("it can't be made")


@dataclass(frozen=True)
class Doubled:
    """A function of any shape: ``out = factor * x``, and its workload's arguments."""

    shape: tuple[int, ...]
    factor: float

    def kernel(self, target: Target) -> PrimFunc:
        size = self.shape[0]
        with prim_func("doubled") as result:
            x, out = (argument(name, (size,), "float32") for name in ("x", "out"))
            with loop("i", size) as i:
                store(out, [i], x[i] * T.float32(self.factor))
        return result[0]


def libraries(builder: Builder, candidates: Sequence[object]) -> list[Path]:
    """Build candidates, all of which have to succeed."""
    built = builder.build(candidates)
    assert [each.error for each in built] == [None] * len(built)
    return [each.library for each in built if each.library is not None]
