"""Experts on their way through the passes: sizes that become known while a function runs."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from hwpq_tvm import HWPQConfig
from hwpq_tvm.relax_passes.bound_memory import BoundMemory
from hwpq_tvm.relax_passes.float_linears import FloatLinears
from hwpq_tvm.relax_passes.linears import bindings, find_linears
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.observe_inputs import OBSERVE, ObserveInputs
from hwpq_tvm.relax_passes.order_bindings import OrderBindings
from hwpq_tvm.relax_passes.pipeline import compile_module
from hwpq_tvm.relax_passes.routers import routers
from hwpq_tvm.relax_passes.usage import NEW_TOKENS, runs_of_call
from hwpq_tvm.runtime.tvm_runtime import VirtualMachine, as_array, as_tensor
from hwpq_tvm.schedules.linear_workload import BUCKETS
from hwpq_tvm.targets import host_target

from .expert_models import EXPERTS, TOP_K, K, N, expected, experts


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    return [rng.standard_normal((N, K)).astype("float32") for _ in range(EXPERTS)], rng


def compiled(mod, entry, folder):
    compile_module(mod, host_target(), folder / "experts.so")
    return VirtualMachine(folder / "experts.so").entry(entry)


def test_any_number_of_tokens_may_choose_an_expert(data, tmp_path):
    matrices, rng = data
    run = compiled(FloatLinears("main")(experts(router=False)), "main", tmp_path)
    for tokens, among in ((1, EXPERTS), (7, 2), (16, EXPERTS)):
        x, scale = (rng.standard_normal((tokens, size)).astype("float32") for size in (K, TOP_K))
        chosen = np.array([rng.permutation(among)[:TOP_K] for _ in range(tokens)])
        (found,) = run(*map(as_tensor, (x, chosen, scale, *matrices)))
        np.testing.assert_allclose(as_array(found), expected(x, chosen, scale, matrices), atol=1e-4)


def test_an_expert_is_calibrated_on_the_tokens_that_chose_it(data, tmp_path):
    matrices, rng = data
    names = {f"expert{e}": f"squares{e}" for e in range(EXPERTS)}
    mod = FloatLinears(OBSERVE)(ObserveInputs("main", names, {})(experts(router=False)))
    run = compiled(mod, OBSERVE, tmp_path)
    x, scale = (rng.standard_normal((9, size)).astype("float32") for size in (K, TOP_K))
    chosen = np.array([rng.permutation(3)[:TOP_K] for _ in range(9)])
    sums = [as_tensor(np.zeros(K)) for _ in range(EXPERTS)]
    run(*map(as_tensor, (x, chosen, scale)), *sums, *map(as_tensor, matrices))
    for e, found in enumerate(sums):
        own = x[(chosen == e).any(axis=1)].astype("float64")
        np.testing.assert_allclose(as_array(found), (own**2).sum(axis=0), rtol=1e-6)
    assert not as_array(sums[3]).any()


def test_the_router_stays_as_it_is():
    mod = experts()
    linears = find_linears(mod["main"])
    assert {weight.name for weight in routers(mod, mod["main"], linears)} == {"router"}
    plans = {plan.name: plan for plan in make_plan(mod, ("main",), HWPQConfig(), calibrated=False).linears}
    assert (plans["router"].scheme.dtype, plans["router"].scheme.sparsity) == ("float32", None)
    assert "chooses experts" in plans["router"].reason
    assert {plans[f"expert{e}"].scheme.dtype for e in range(EXPERTS)} == {"int8"}


def test_the_tokens_of_an_expert_are_some_of_a_prompt():
    function = experts()["main"]
    by_weight = {call.weight.name: call.activation.ty.shape.values[:-1] for call in find_linears(function)}
    assert runs_of_call(function, by_weight["expert1"]) == dict.fromkeys(BUCKETS, 1 / len(BUCKETS))
    one = function.bind_symbolic_vars({"seq_len": tirx.IntImm("int64", 1)})
    assert runs_of_call(one, by_weight["expert1"]) == {BUCKETS[0]: NEW_TOKENS}


def reordered(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with its `match_cast` behind everything else, as operator fusion may leave it."""
    function = mod["main"]
    (block,) = function.body.blocks
    casts = [binding for binding in block.bindings if isinstance(binding, relax.MatchCast)]
    assert casts
    *others, last = [binding for binding in block.bindings if binding not in casts]
    body = relax.SeqExpr([relax.DataflowBlock([*others, *casts, last])], function.body.body)
    mod = mod.clone()
    mod["main"] = relax.Function(function.params, body, function.ret_ty, attrs=function.attrs)
    return mod


def test_sizes_come_before_what_has_them():
    mod = experts()
    broken = reordered(mod)
    ordered = OrderBindings()(broken)
    seen: set[tirx.Var] = set()
    casts = 0
    for binding in ordered["main"].body.blocks[0].bindings:
        sizes = {size for size in relax.analysis.tir_vars_in_type(binding.var.ty) if size.name == "expert_tokens"}
        if isinstance(binding, relax.MatchCast):
            casts += 1
            seen |= sizes
        assert sizes <= seen
    assert casts == 1
    kept = [binding.var for binding in OrderBindings()(mod)["main"].body.blocks[0].bindings]
    assert all(a.same_as(b.var) for a, b in zip(kept, mod["main"].body.blocks[0].bindings, strict=True))


def test_memory_is_for_as_many_tokens_as_an_expert_can_get():
    lowering = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
    ]
    mod = tvm.transform.Sequential([*lowering, relax.transform.CanonicalizeBindings(), BoundMemory()])(
        FloatLinears("main")(experts(router=False))
    )
    sizes = [
        int(binding.value.args[0].values[0])
        for binding in bindings(mod["main"])
        if isinstance(binding.value, relax.Call)
        and getattr(binding.value.op, "name", "") == "relax.memory.alloc_storage"
    ]
    # For each expert its rows and what it computes, of at most 16 tokens in float32.
    assert sizes == [16 * K * 4, 16 * N * 4] * EXPERTS
