"""Runs an imported module as it is: TVM's own lowering for CPUs, no pass or schedule of this project."""

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.relax.backend import cpu_generic

from hwpq_tvm.importers import ImportedModel


class Runner:
    """An imported model on the VM, with its own cache."""

    def __init__(self, model: ImportedModel) -> None:
        target = tvm.target.Target("llvm")
        phases = [
            *cpu_generic.library_dispatch_passes(target),
            *cpu_generic.legalize_passes(target),
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            *cpu_generic.finalize_passes(target),
        ]
        with target, tvm.transform.PassContext(opt_level=3):
            module = tvm.transform.Sequential(phases)(model.module)
            executable = relax.build(module, target, relax_pipeline=None)
        self.vm = relax.VirtualMachine(executable, tvm.cpu())
        entry = model.module["prefill"]
        names = [variable.name for variable in entry.params[entry.attrs["num_input"] :]]
        self.weights = [tvm.runtime.tensor(model.parameters.load(name)) for name in names]
        *outer, row = model.metadata.kv_cache_shape
        dtype = np.dtype(model.metadata.kv_cache_dtype)
        # A float32 of bytes -1 is a NaN, and so is the scale of an int8 row.
        self.cache = tvm.runtime.tensor(np.full((*outer, row * dtype.itemsize), -1, np.int8).view(dtype))

    def _run(self, entry: Callable, ids: list[int], past: int, *inputs: np.ndarray) -> np.ndarray:
        values = [np.array([ids], np.int64), *inputs, np.array([past], np.int32)]
        logits, self.cache = entry(*(tvm.runtime.tensor(value) for value in values), self.cache, *self.weights)
        return logits.numpy()

    def prefill(self, ids: list[int], past: int, at: list[int]) -> np.ndarray:
        """Logits of the positions `at` of `ids`, `[len(at), vocab]`."""
        return self._run(self.vm["prefill"], ids, past, np.array(at, np.int64))[0]

    def decode(self, token: int, past: int) -> np.ndarray:
        """Logits after one token, `[vocab]`."""
        return self._run(self.vm["decode"], [token], past)[0, 0]
