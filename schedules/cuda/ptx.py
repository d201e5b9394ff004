"""The PTX instructions that tensor-core kernels are made of, as statements of TensorIR."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.threads import registers
from hwpq_tvm.schedules.tir_builder import store

# Bytes that one lane copies at a time, and that memory likes best.
COPY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Mma:
    """One tensor-core instruction of a warp: 16 output rows by 8 tokens.

    Attributes
    ----------
    sparse
        Whether the first operand is 2:4, with metadata.
    k
        Dense in_features that it multiplies.
    operand
        Type of both operands: "s8", "e4m3" or "f16".
    accumulator
        "s32" or "f32".
    """

    sparse: bool
    k: int
    operand: str
    accumulator: str

    @property
    def name(self) -> str:
        """As the PTX ISA spells it; metadata whose indices ascend is what full speed takes."""
        op = "mma.sp::ordered_metadata" if self.sparse else "mma"
        types = ".".join((self.accumulator, self.operand, self.operand, self.accumulator))
        return f"{op}.sync.aligned.m16n8k{self.k}.row.col.{types}"

    @property
    def tokens_registers(self) -> int:
        """Registers of the second operand."""
        return 4 if self.sparse else 2

    def emit(
        self,
        result: Sequence[Any],
        weights: Sequence[Any],
        tokens: Sequence[Any],
        start: Sequence[Any],
        metadata: Any = None,
        selector: int = 0,
    ) -> None:
        """Let ``result = weights * tokens + start``; integers are held as uint32.

        `selector` says which lanes' metadata count (float16: of lanes 0 and 1, or 2 and 3, of every four).
        """
        extra = (metadata, selector) if self.sparse else ()
        T.evaluate(T.ptx[self.name](*result, *weights, *tokens, *start, *extra))


def copy_async(to: Any, source: Any, wanted: Any = None) -> None:
    """Copy 16 bytes from global to shared memory without waiting; where `wanted` is false, put zeros instead.

    It goes around the first-level cache: what is copied is read again from shared memory, if at all.
    """
    size = () if wanted is None else (T.Select(wanted, T.uint32(COPY_BYTES), T.uint32(0)),)
    T.evaluate(T.ptx["cp.async.cg.shared.global"](to, source, COPY_BYTES, *size))


def commit_copies() -> None:
    """Make a group of the copies that this thread has started since the last one."""
    T.evaluate(T.ptx.cp.async_.commit_group())


def wait_for_copies(pending: int) -> None:
    """Wait until no more than the latest `pending` groups of this thread are under way."""
    T.evaluate(T.ptx.cp.async_.wait_group(pending))


def load_matrices(registers: Sequence[Any], source: Any) -> None:
    """Load four matrices of 8 rows by 16 bytes: lane i points to row ``i % 8`` of matrix ``i // 8``."""
    T.evaluate(T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](*registers, source))


def store_vector(to: Any, value: Any, dtype: str) -> None:
    """Store four numbers of a vector, float32 or int32, at once.

    Written as an assignment, nvcc would at times take it apart.
    """
    numbers = registers("numbers", 4, dtype)
    store(numbers, [T.Ramp(0, 1, 4)], value)
    kind = {"float32": "f32", "int32": "s32"}[dtype]
    T.evaluate(T.ptx[f"st.global.v4.{kind}"](to, *(numbers[i] for i in range(4))))
