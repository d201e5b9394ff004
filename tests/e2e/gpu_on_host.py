"""Models built for a GPU that run on the host: what `build` makes, with another way to run its kernels."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

import hwpq_tvm
from hwpq_tvm import compiler
from hwpq_tvm.relax_passes.apply_schedules import ApplySchedules
from hwpq_tvm.relax_passes.pipeline import CompiledModule, lower, optimise
from hwpq_tvm.runtime.compiled_model import CompiledModel
from hwpq_tvm.schedules.cuda import space
from hwpq_tvm.targets import host_target
from tests.ptx.run import Compiled, compile_many

Compile = Callable[[tvm.IRModule, tvm.target.Target, Path], CompiledModule]


def build(model: Any, target: str, compile_module: Compile, **options: Any) -> CompiledModel:
    """Build for a GPU, but for the compilation, which makes a library for the host; what needs nvcc looks for it."""

    def replacement(mod: tvm.IRModule, resolved: tvm.target.Target, library: Path, **_: Any) -> Any:
        return compile_module(mod, resolved, library)

    with mock.patch.multiple(compiler, compile_module=replacement, find_compiler=lambda: None):
        built = hwpq_tvm.build(model, target, progress=False, **options)
    host = host_target()
    manifest = replace(built.manifest, target=host.export(), required_features=())
    return CompiledModel(built.library, built.params, manifest, built.report, {}, keep_alive=built)


@contextmanager
def one_kernel() -> Iterator[None]:
    """Plan one kernel on tensor cores for any number of tokens: others would be compiled and never run."""
    with mock.patch.object(space, "TOLERANCES", (math.inf,)):
        space.ranges.cache_clear()
        yield
    space.ranges.cache_clear()


def interpreted(mod: tvm.IRModule, target: tvm.target.Target, library: Path) -> CompiledModule:
    """Compile the kernels for the GPU, and the rest for the host, which has the PTX interpreter run the kernels."""
    with target, one_kernel():
        schedules = ApplySchedules(target)
        mod = lower(tvm.transform.Sequential([schedules])(optimise(mod)))
    kernels = {
        gvar: function
        for gvar, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and gvar.name_hint in schedules.choices
    }
    compiled = compile_many(list(kernels.values()), str(target.attrs["arch"]))
    names = {gvar: f"{library.parent.name}.{gvar.name_hint}" for gvar in kernels}
    for gvar, each in zip(kernels, compiled, strict=True):
        tvm_ffi.register_global_func(names[gvar], _interpret(each), override=True)
    host = tvm.IRModule({gvar: function for gvar, function in mod.functions_items() if gvar not in kernels})
    for gvar, function in host.functions_items():
        if isinstance(function, relax.Function):
            host[gvar] = _CallByName(names).visit_expr(function)
    relax.build(host, host_target(), relax_pipeline=None).export_library(str(library))
    return CompiledModule(schedules.choices, None)


def _interpret(kernel: Compiled) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        # Copies: constants are not to be written, and the interpreter sees whole arrays only.
        arrays = [each.numpy() if isinstance(each, tvm.runtime.Tensor) else each for each in arguments]
        kernel.run(*arrays)
        for tensor, array in zip(arguments, arrays, strict=True):
            if isinstance(array, np.ndarray):
                tensor.copyfrom(array)

    return call


@mutator
class _CallByName(PyExprMutator):
    """Calls functions of the host's registry in place of kernels."""

    def __init__(self, names: dict[tvm.ir.GlobalVar, str]) -> None:
        super().__init__()
        self.names = names

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if call.op in self.names:
            return relax.Call(relax.ExternFunc(self.names[call.op]), call.args, call.attrs, call.ty_args)
        return super().visit_call_(call)
