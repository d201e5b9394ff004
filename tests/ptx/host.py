"""Runs the host part of a TensorIR function split from its kernels: conditions, workspaces, launches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import Call, IRModule
from tvm.ir.instrument import pass_instrument
from tvm.tirx import PrimFunc
from tvm.tirx.buffer import is_buffer_var

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Launch:
    """A call of a kernel: a buffer stands for its address."""

    kernel: str
    arguments: list[Any]
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    dynamic_shared: int


@pass_instrument
class Splitting:
    """Keeps the module as it is right after host and device code have been told apart."""

    def __init__(self) -> None:
        self.module: IRModule | None = None

    def run_after_pass(self, module: IRModule, info: Any) -> None:
        if info.name == "tirx.SplitHostDevice":
            self.module = module


class Host:
    """Walks a host function.

    Parameters
    ----------
    func
        Of the module that `Splitting` kept.
    allocate
        Makes a workspace: ``allocate(name, elements, dtype) -> Any``, which stands for it in `Launch.arguments`.
    launch
        Takes the launches, in order.
    """

    def __init__(self, func: PrimFunc, allocate: Callable[[str, int, str], Any], launch: Callable[[Launch], None]):
        self.func = func
        self.allocate = allocate
        self.launch = launch
        self.values: dict[Any, Any] = {}

    def run(self, arguments: list[Any], shapes: list[tuple[int, ...] | None]) -> None:
        """Bind the arguments, and the symbols in their shapes, and run the body."""
        for param, argument, shape in zip(self.func.params, arguments, shapes, strict=True):
            self.values[param] = argument
            if is_buffer_var(param):
                self._bind_shape(param, shape)
        for param, shape in zip(self.func.params, shapes, strict=True):
            if is_buffer_var(param) and tuple(int(self._value(extent)) for extent in param.shape) != shape:
                raise ValueError(f"{param.name}: an array of shape {shape}, expected {list(param.shape)}")
        self._statement(self.func.body)

    def _bind_shape(self, buffer: Any, shape: tuple[int, ...] | None) -> None:
        if shape is None or len(shape) != len(buffer.shape):
            raise ValueError(f"{buffer.name}: an array of shape {shape}, expected {list(buffer.shape)}")
        for extent, size in zip(buffer.shape, shape, strict=True):
            if isinstance(extent, tirx.Var) and extent not in self.values:
                self.values[extent] = size

    def _statement(self, statement: Any) -> None:
        if isinstance(statement, tirx.SeqStmt):
            for each in statement.seq:
                self._statement(each)
        elif isinstance(statement, tirx.IfThenElse):
            if self._value(statement.condition):
                self._statement(statement.then_case)
            elif statement.else_case is not None:
                self._statement(statement.else_case)
        elif isinstance(statement, tirx.AllocBuffer):
            buffer = statement.buffer
            elements = int(np.prod([int(self._value(extent)) for extent in buffer.shape]))
            self.values[buffer] = self.allocate(buffer.name, elements, str(buffer.dtype))
        elif isinstance(statement, tirx.DeclBuffer):
            self.values[statement.buffer] = self._value(statement.data)
        elif isinstance(statement, tirx.Bind):
            self.values[statement.var] = self._value(statement.value)
        elif isinstance(statement, tirx.For):
            start = int(self._value(statement.min))
            for i in range(start, start + int(self._value(statement.extent))):
                self.values[statement.loop_var] = i
                self._statement(statement.body)
        elif isinstance(statement, tirx.AttrStmt):
            self._statement(statement.body)
        elif isinstance(statement, tirx.AssertStmt):
            if not self._value(statement.condition):
                raise AssertionError(str(statement))
        elif isinstance(statement, tirx.Evaluate):
            self._evaluate(statement.value)
        else:
            raise NotImplementedError(f"host statement {type(statement).__name__}: {statement}")

    def _evaluate(self, call: Any) -> None:
        if not isinstance(call, Call):
            return
        if "call_ffi_kernel" not in str(call.op.name):
            raise NotImplementedError(f"host call {call}")
        name, *arguments = call.args
        names = [str(item) for item in call.attrs["launch_params"]]
        values = [self._value(argument) for argument in arguments]
        extents = dict(zip(names, values[len(values) - len(names) :], strict=True))
        axes = {
            prefix: tuple(int(extents.get(f"{prefix}.{axis}", 1)) for axis in "xyz")
            for prefix in ("blockIdx", "threadIdx")
        }
        shared = int(extents.get("tirx.use_dyn_shared_memory", 0))
        unknown = set(extents) - {f"{p}.{a}" for p in axes for a in "xyz"} - {"tirx.use_dyn_shared_memory"}
        if unknown:
            raise NotImplementedError(f"launch parameters {sorted(unknown)}")
        count = len(values) - len(names)
        self.launch(Launch(str(name.value), values[:count], axes["blockIdx"], axes["threadIdx"], shared))  # type: ignore[arg-type]

    def _value(self, expression: Any) -> Any:
        """Evaluate an expression of integers; what is no number stands for a buffer."""
        if isinstance(expression, int | float):
            return expression
        if expression in self.values:
            return self.values[expression]
        if isinstance(expression, tirx.IntImm | tirx.FloatImm):
            return expression.value
        if isinstance(expression, tirx.Cast):
            value = self._value(expression.value)
            return int(value) if "int" in str(expression.ty) else value
        if isinstance(expression, tirx.Not):
            return not self._value(expression.a)
        if isinstance(expression, tirx.Select):
            chosen = expression.true_value if self._value(expression.condition) else expression.false_value
            return self._value(chosen)
        for kind, function in BINARY.items():
            if isinstance(expression, kind):
                return function(self._value(expression.a), self._value(expression.b))
        if isinstance(expression, Call):
            return self._call(expression)
        raise NotImplementedError(f"host expression {type(expression).__name__}: {expression}")

    def _call(self, call: Any) -> Any:
        name = str(call.op.name).split(".")[-1]
        if name == "buffer_data":
            return self.values[call.args[0]]
        if name == "if_then_else":
            return self._value(call.args[1] if self._value(call.args[0]) else call.args[2])
        a, b = (int(self._value(argument)) for argument in call.args[:2])
        operations = {"shift_left": a << b, "shift_right": a >> b, "bitwise_and": a & b, "bitwise_or": a | b}
        if name not in operations:
            raise NotImplementedError(f"host call {call}")
        return operations[name]


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[Any, Callable[[Any, Any], Any]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: lambda a, b: a // b,
    tirx.FloorMod: lambda a, b: a % b,
    tirx.Div: _truncated,
    tirx.Mod: lambda a, b: a - _truncated(a, b) * b,
    tirx.Min: min,
    tirx.Max: max,
    tirx.EQ: lambda a, b: a == b,
    tirx.NE: lambda a, b: a != b,
    tirx.LT: lambda a, b: a < b,
    tirx.LE: lambda a, b: a <= b,
    tirx.GT: lambda a, b: a > b,
    tirx.GE: lambda a, b: a >= b,
    tirx.And: lambda a, b: bool(a) and bool(b),
    tirx.Or: lambda a, b: bool(a) or bool(b),
}
