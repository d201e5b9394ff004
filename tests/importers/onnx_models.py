"""Makes small ONNX models, and runs them: by onnxruntime, and imported, by TVM's own lowering for CPUs."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.backend import cpu_generic

from hwpq_tvm.importers import ImportedModel


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Sequence[int | str | None], str]],
    outputs: Sequence[str],
    initializers: Mapping[str, np.ndarray],
    opset: int = 20,
    **options,
) -> onnx.ModelProto:
    """A model of nodes; inputs by their shape and type."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, _number(dtype), shape) for name, (shape, dtype) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **options)


def _number(dtype: str) -> int:
    return TensorProto.BFLOAT16 if dtype == "bfloat16" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def by_onnxruntime(model: onnx.ModelProto | str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, without any of onnxruntime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    session = onnxruntime.InferenceSession(data, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


class Imported:
    """An imported model on TVM's virtual machine."""

    def __init__(self, imported: ImportedModel) -> None:
        # Compiling takes most of a test's time.
        target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
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
            lowered = tvm.transform.Sequential(phases)(imported.module)
            executable = relax.build(lowered, target, relax_pipeline=None)
        function = imported.module["main"]
        inputs = int(function.attrs["num_input"])
        self.inputs = [param.name for param in function.params[:inputs]]
        self.outputs = [str(name) for name in function.attrs["hwpq.outputs"]]
        self.weights = {param.name: imported.parameters.load(param.name) for param in function.params[inputs:]}
        self._main = relax.VirtualMachine(executable, tvm.cpu())["main"]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        values = [*(feeds[name] for name in self.inputs), *self.weights.values()]
        found = self._main(*(tvm.runtime.tensor(np.ascontiguousarray(value)) for value in values))
        return dict(zip(self.outputs, (each.numpy() for each in found), strict=True))
