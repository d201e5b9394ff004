"""What is tuned, and what a tuning record is for: one linear, for a known number of tokens."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import description, plain
from hwpq_tvm.schedules.tir_builder import prim_func
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WEIGHT_FORMATS, WeightFormat

# Numbers of tokens that are tuned where a linear takes any: each serves up to that many, the last one all others.
BUCKETS = (4, 16, 64, 256)
WORKLOAD_ATTR = "hwpq.workload"

_FORMATS: dict[tuple[str, int | None, str], WeightFormat] = {
    (each.name, each.group_size, each.activation_dtype): each for each in (*WEIGHT_FORMATS, *CUDA_FORMATS)
}


@dataclass(frozen=True, slots=True)
class LinearWorkload:
    """A linear for a known number of tokens.

    Attributes
    ----------
    weight_format, activation_dtype, group_size, N, K
        As the description of the linear has them (see `kernel_attr`): N is padded to whole blocks.
    M
        Tokens.
    """

    weight_format: str
    activation_dtype: str
    group_size: int | None
    M: int
    N: int
    K: int

    @classmethod
    def of(cls, func: PrimFunc, M: int | None = None) -> "LinearWorkload":
        """Read the description of a linear.

        Parameters
        ----------
        func
            A description whose op is "linear".
        M
            Number of tokens; only where the description leaves it open.
        """
        kernel = description(func)
        assert kernel is not None
        known = -1 not in kernel["lead"]
        tokens = prod(kernel["lead"]) if known else M
        assert tokens is not None, "the linear is for any number of tokens: say for how many"
        return cls(
            weight_format=kernel["weight_format"],
            activation_dtype=kernel["activation_dtype"],
            group_size=kernel.get("group_size"),
            M=tokens,
            N=kernel["N"],
            K=kernel["K"],
        )

    @classmethod
    def from_module(cls, mod: tvm.IRModule) -> "LinearWorkload | None":
        """Read what `module` made; None for any other module."""
        functions = {gvar.name_hint: function for gvar, function in mod.functions_items()}
        attrs = getattr(functions.get("main"), "attrs", None)
        if attrs is None or WORKLOAD_ATTR not in attrs:
            return None
        fields: dict[str, Any] = {"group_size": None, **plain(attrs[WORKLOAD_ATTR])}
        if set(fields) != set(cls.__slots__):
            return None
        workload = cls(**fields)
        return workload if workload._key in _FORMATS else None

    def func(self) -> PrimFunc:
        """Describe the linear, with the leading dimensions (1, M)."""
        return self.format.linear((1, self.M), self.N, self.K)

    def module(self) -> tvm.IRModule:
        """Make the module that stands for this workload in a database.

        Its only function computes nothing: it carries the workload as an attribute, and a root block that takes the
        annotations of a trace. Equal workloads have structurally equal modules.
        """
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        with prim_func("main") as result, T.sblock("root"):
            T.evaluate(0)
        return tvm.IRModule({"main": result[0].with_attr({WORKLOAD_ATTR: fields, "global_symbol": "main"})})

    @property
    def format(self) -> WeightFormat:
        """How the weight is stored."""
        return _FORMATS[self._key]

    @property
    def label(self) -> str:
        """Format and size, such as "sparse24_int4.g64 16 x 2048 x 8192" (M x N x K)."""
        return f"{self.format.label} {self.M} x {self.N} x {self.K}"

    @property
    def _key(self) -> tuple[str, int | None, str]:
        return self.weight_format, self.group_size, self.activation_dtype


def format_of(kernel: dict[str, Any]) -> WeightFormat:
    """Look up the weight format of a linear's description."""
    return _FORMATS[kernel["weight_format"], kernel.get("group_size"), kernel["activation_dtype"]]


def tokens_to_tune(func: PrimFunc) -> tuple[int, ...]:
    """List the numbers of tokens that a linear is tuned for: its own, or `BUCKETS` where it takes any."""
    kernel = description(func)
    assert kernel is not None
    return BUCKETS if -1 in kernel["lead"] else (prod(kernel["lead"]),)
