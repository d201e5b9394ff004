"""Imported models call the fused kernels, as often as they have layers."""

from collections import Counter

import pytest
import tvm
from tvm import relax

from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.importers import import_model
from hwpq_tvm.relax_passes.compress_linears import CompressLinears
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.pipeline import optimise
from hwpq_tvm.schedules.kernel_attr import description
from tests.tiny_hf import tiny_llama, tiny_qwen2, tiny_qwen3

LAYERS = 2


def calls(mod: tvm.IRModule, entry: str) -> Counter[str]:
    """How often an entry calls each kind of kernel."""
    found: Counter[str] = Counter()

    def note(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and expr.args and isinstance(expr.args[0], tvm.ir.GlobalVar):
            found[(description(mod[expr.args[0]]) or {"op": "fused operators"})["op"]] += 1

    relax.analysis.post_order_visit(mod[entry], note)
    return found


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_qwen2, tiny_qwen3])
def test_every_layer_is_fused(tiny):
    imported = import_model(tiny(num_hidden_layers=LAYERS), max_seq_len=16)
    plan = make_plan(imported.module, imported.entries, HWPQConfig(), calibrated=False)
    mod = optimise(CompressLinears(plan, imported.entries)(imported.module))
    for entry in imported.entries:
        found = calls(mod, entry)
        # The norms of a Qwen3's heads are the business of the rotary kernel.
        expected = {"rotary_update": LAYERS, "attention": LAYERS, "gate": LAYERS, "norm": 2 * LAYERS + 1}
        assert {op: found[op] for op in expected} == expected, entry
        assert "kv_cache_update" not in found
    # Nor does any update stay in the module that nothing calls.
    kernels = [description(function) for function in mod.functions.values() if not isinstance(function, relax.Function)]
    assert "kv_cache_update" not in {kernel["op"] for kernel in kernels if kernel}
