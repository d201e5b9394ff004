"""The largest numbers along the last axis come from a kernel of ours, others from TVM."""

import subprocess
import sys

import pytest
import tvm
from tvm import relax

from hwpq_tvm.relax_passes.use_top_k import UseTopK

from .kernels import called, descriptions


def module(**attributes) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([tvm.tirx.Var("rows", "int64"), 9], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.topk(x, **{"k": 3, "dtype": "int64", **attributes}))
        builder.emit_func_output(result)
    return builder.get()


@pytest.mark.parametrize("returned", ["both", "values", "indices"])
def test_a_kernel_takes_its_place(returned):
    before = module(ret_type=returned)
    after = UseTopK()(before)
    assert called(after["main"]) == ["top_k_9"]
    kernel = descriptions(after)["top_k_9"]
    assert (kernel["lead"], kernel["N"], kernel["k"]) == ([-1], 9, 3)
    relax.analysis.well_formed(after)


@pytest.mark.parametrize("attributes", [{"axis": 0}, {"largest": False}, {"k": 10}])
def test_what_the_kernel_does_not_do_is_left(attributes):
    before = module(**attributes)
    tvm.ir.assert_structural_equal(UseTopK()(before), before)


def test_the_sorts_that_others_become_are_there_without_the_compiler():
    code = """
import sys
from hwpq_tvm.runtime.tvm_runtime import runtime
for name in ("argsort", "sort", "topk"):
    assert runtime().get_global_func(f"tvm.contrib.sort.{name}", allow_missing=True) is not None, name
assert "tvm" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
