"""Runs an imported module as it is: TVM's own lowering for CPUs, no schedule of this project.

Of its passes there is the one without which sizes that become known on the way would not compile.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.relax.backend import cpu_generic

from hwpq_tvm.importers import ImportedModel
from hwpq_tvm.relax_passes.order_bindings import OrderBindings


def virtual_machine(model: ImportedModel) -> relax.VirtualMachine:
    """Compile an imported model."""
    target = tvm.target.Target("llvm")
    phases = [
        *cpu_generic.library_dispatch_passes(target),
        *cpu_generic.legalize_passes(target),
        OrderBindings(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        *cpu_generic.finalize_passes(target),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(phases)(model.module)
        executable = relax.build(module, target, relax_pipeline=None)
    return relax.VirtualMachine(executable, tvm.cpu())


def weights(model: ImportedModel, entry: str) -> list[tvm.runtime.Tensor]:
    """The weights of a model, in the order of an entry's parameters."""
    function = model.module[entry]
    names = [str(variable.name) for variable in function.params[int(function.attrs["num_input"]) :]]
    return [tvm.runtime.tensor(model.parameters.load(name)) for name in names]


def runner(model: ImportedModel, entry: str = "main") -> Callable[..., tuple[np.ndarray, ...]]:
    """Compile an imported model without a cache: a function from arrays to the arrays that an entry returns."""
    vm, values = virtual_machine(model), weights(model, entry)

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        result = vm[entry](*(tvm.runtime.tensor(np.ascontiguousarray(each)) for each in inputs), *values)
        return tuple(each.numpy() for each in ([result] if hasattr(result, "numpy") else result))

    return run


class Runner:
    """An imported model on the VM, with its own cache."""

    def __init__(self, model: ImportedModel) -> None:
        self.vm = virtual_machine(model)
        self.weights = weights(model, "prefill")
        *outer, row = model.metadata.causal_lm.kv_cache_shape
        dtype = np.dtype(model.metadata.causal_lm.kv_cache_dtype)
        # A float32 of bytes -1 is a NaN, and so is the scale of an int8 row.
        self.cache = tvm.runtime.tensor(np.full((*outer, row * dtype.itemsize), -1, np.int8).view(dtype))

    def rows(
        self, entry: str, ids: np.ndarray, past: Sequence[int] | np.ndarray, at: Sequence[int] | None = None
    ) -> np.ndarray:
        """Logits of all sequences, `[batch, len(at) or 1, vocab]`, for tokens `[batch, length]` behind `past`."""
        values = [np.asarray(ids, np.int64), *([] if at is None else [np.array(at, np.int64)])]
        values.append(np.asarray(past, np.int32))
        inputs = (tvm.runtime.tensor(value) for value in values)
        logits, self.cache = self.vm[entry](*inputs, self.cache, *self.weights)
        return logits.numpy()

    def prefill(self, ids: list[int], past: int, at: list[int]) -> np.ndarray:
        """Logits of the positions `at` of the only sequence's `ids`, `[len(at), vocab]`."""
        return self.rows("prefill", [ids], [past], at)[0]

    def decode(self, token: int, past: int) -> np.ndarray:
        """Logits after one token of the only sequence, `[vocab]`."""
        return self.rows("decode", [[token]], [past])[0, 0]
