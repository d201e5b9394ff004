"""Gives what a static function computes on the way memory that lasts: a call allocates its results only."""

from collections import Counter
from math import prod

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .dataflow import functions

# Bytes of the largest tensor that is kept; constants go into the library.
LARGEST = 1 << 20

_STORAGE, _TENSOR = "relax.memory.alloc_storage", "relax.memory.alloc_tensor"
# Storage, offset in it, shape and dtype of a tensor.
_Place = tuple[relax.Expr, int, tuple[int, ...], str]


class _Scratch:
    """Makes constants that are equal to no other one of a module: the virtual machine keeps one of all equal ones."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self._made: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._others: set[tuple[str, tuple[int, ...], bytes]] = set()
        for _, function in functions(mod):
            relax.analysis.post_order_visit(function, self._note)

    def _note(self, expr: relax.Expr) -> None:
        if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
            array = expr.value.numpy()
            self._others.add((array.dtype.name, array.shape, array.tobytes()))

    def constant(self, shape: tuple[int, ...], dtype: str) -> relax.Expr | None:
        """A new constant; None where there is none left, or none that is small enough."""
        size = prod(shape) * np.dtype(dtype).itemsize
        while size <= LARGEST and (number := self._made[dtype, shape]) < 256 ** min(size, 4):
            self._made[dtype, shape] += 1
            digits = number.to_bytes(4, "little")
            array = np.frombuffer((digits * (size // len(digits) + 1))[:size], dtype).reshape(shape)
            if (dtype, shape, array.tobytes()) not in self._others:
                return relax.const(array, dtype)
        return None


@mutator
class _UseScratch(PyExprMutator):
    """Replaces tensors in planned memory by constants: one for all that have a type and a place in common."""

    def __init__(self, mod: tvm.IRModule, scratch: _Scratch, results: set[relax.Var]) -> None:
        super().__init__(mod)
        self.scratch = scratch
        self.results = results
        self.constants: dict[_Place, relax.Expr | None] = {}
        self.replaced: dict[relax.Var, relax.Expr] = {}

    def visit_var_(self, op: relax.Var) -> relax.Expr:
        return self.replaced[op] if op in self.replaced else super().visit_var_(op)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        place = None if binding.var in self.results else _place(binding.value)
        if place is not None and place not in self.constants:
            self.constants[place] = self.scratch.constant(*place[2:])
        constant = self.constants[place] if place is not None else None
        if constant is None:
            super().visit_var_binding_(binding)
        else:
            self.replaced[binding.var] = constant


def _is_call(value: relax.Expr, op: str) -> bool:
    return isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) and value.op.name == op


def _place(value: relax.Expr) -> _Place | None:
    """Where a tensor lies whose memory was planned; None for anything else."""
    if not _is_call(value, _TENSOR) or not isinstance(value.args[2], relax.ShapeExpr):
        return None
    storage, offset, shape, dtype = value.args[:4]
    return storage, int(offset), tuple(int(size) for size in shape.values), str(dtype.value)


def _is_static_entry(function: relax.Function) -> bool:
    """Whether a function is one that a runtime calls, whose sizes are all known and which has no branches."""
    branches: list[relax.If] = []

    def look(expr: relax.Expr) -> None:
        if isinstance(expr, relax.If):
            branches.append(expr)

    relax.analysis.post_order_visit(function, look)
    symbols = relax.analysis.defined_symbolic_vars(function) or relax.analysis.free_symbolic_vars(function)
    return function.attrs is not None and "num_input" in function.attrs and not symbols and not branches


def _results(function: relax.Function) -> set[relax.Var]:
    """The variables in whose memory a result of the function may lie."""
    found = set(relax.analysis.free_vars(function.body.body))
    for block in reversed(function.body.blocks):
        for binding in reversed(block.bindings):
            if binding.var in found:
                found |= set(relax.analysis.free_vars(binding.value))
    return found


def _without_unread(function: relax.Function) -> relax.Function:
    """Drop the tuples that nobody reads, and the storage that no tensor lies in any more."""
    read = set(relax.analysis.free_vars(function.body.body))
    blocks = []
    for block in reversed(function.body.blocks):
        kept = []
        for binding in reversed(block.bindings):
            value = binding.value
            if binding.var in read or not (isinstance(value, relax.Tuple) or _is_call(value, _STORAGE)):
                kept.append(binding)
                read |= set(relax.analysis.free_vars(value))
        blocks.append(relax.BindingBlock(kept[::-1]))
    body = relax.SeqExpr(blocks[::-1], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


@tvm.transform.module_pass(opt_level=0, name="StaticTensors")
class StaticTensors:
    """Keep the tensors that static entry functions compute on the way, rather than making them anew in every call.

    Runs after memory was planned. In an entry function without symbolic dimensions, such as the decoding of a token, a
    tensor in planned storage becomes a constant of the module, which the virtual machine makes once and kernels write
    to; so one call at a time may run. Tensors that share storage but not shape become several constants: activations
    of few tokens are small, and those beyond `LARGEST` bytes stay as they are. So does what a result lies in: it
    belongs to who called.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with such constants."""
        mod = mod.clone()
        scratch = _Scratch(mod)
        for gvar, function in functions(mod):
            if _is_static_entry(function):
                body = _UseScratch(mod, scratch, _results(function)).visit_expr(function.body)
                rewritten = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
                mod.update_func(gvar, _without_unread(rewritten))
        return mod
